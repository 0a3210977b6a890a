// Maximum over windows of an image, int8 or float32.
#include "pool.h"

namespace qk {
namespace {

QK_RECORD(Payload, QK_POOL);

const char* check(const StepCheck& c) { return check_pool(c, c.payload<Payload>()); }

void run(const StepCall& call, const void*, const Parallel& parallel, void*) { pool2d(pool_problem<Payload>(call), call.isa, parallel); }

}  // namespace

const StepType max_pool_step{.name = "max_pool", .payload = kPayload<Payload>,
                             .check = check, .shape = pool_shape<Payload>, .run = run};

}  // namespace qk
