// Attention: softmax(scale * q . k + bias) . v of every head, of tokens [n, t, c] that hold heads side by side.
#include "../attention.h"
#include "operand.h"

namespace qk {
namespace {

// The step reads q, k, v, and a bias where it is a value: float32 [n or 1, heads or 1, tokens of q or 1, tokens of k]. The
// three may be one value, or parts of it.
#define QK_ATTENTION(F)                                                                      \
  F(int32_t, heads, 1)                                                                       \
  F(int32_t, kv_heads, 1)      /* of k and v; heads / kv_heads neighbours share one */       \
  F(int32_t, width, 1) F(int32_t, v_width, 1)  /* channels of a head */                      \
  F(int32_t, q_channel, 0) F(int32_t, k_channel, 0) F(int32_t, v_channel, 0)  /* where the first head begins */ \
  F(float, exponent, 1.0f)     /* log2(e) times the scale of the scores */                   \
  F(uint8_t, causal, 0)        /* 1: token i reads keys 0 to i */                            \
  F(int32_t, int8_from, 0)     /* keys from which on, up to kMaxK, products are int8; 0: never */ \
  F(Constant, bias, Constant())  /* f32 [bias_n, bias_heads, bias_q, bias_k], or none; image n reads that of n % bias_n */ \
  F(int32_t, bias_n, 1) F(int32_t, bias_heads, 1) F(int32_t, bias_q, 1) F(int32_t, bias_k, 1) \
  F(float, q_scale, 1.0f) F(int32_t, q_zero, 0) F(float, k_scale, 1.0f) F(int32_t, k_zero, 0) \
  F(float, v_scale, 1.0f) F(int32_t, v_zero, 0)                                              \
  QK_OUTPUT(F)
QK_RECORD(Payload, QK_ATTENTION);

enum { kQ, kK, kV, kBias };

bool has_int8_products(const Payload& p, int64_t keys) { return p.int8_from && keys >= p.int8_from && keys <= kMaxK; }

bool has_constant(const Payload& p) { return p.bias.at || p.bias.bytes; }

const char* check_tokens(const StepCheck& c, int i, int32_t channel, int64_t channels) {
  if (const char* why = check_operand(c, i)) return why;
  const ProgramValue& v = c.program.values[c.step.reads[i]];
  if (v.rank != 3) return "it reads no tokens";
  return channel >= 0 && channel + channels <= v.channels ? nullptr : "its heads reach beyond the channels of what it reads";
}

const char* check_bias(const StepCheck& c, const Payload& p) {
  if (c.step.reads[kBias] >= 0) {
    if (has_constant(p)) return "it has a bias twice";
    if (const char* why = check_operand(c, kBias)) return why;
    const ProgramValue& v = c.program.values[c.step.reads[kBias]];
    return v.rank == 4 && v.type == DType::f32 ? nullptr : "its bias is no float32 value of rank 4";
  }
  if (!has_constant(p)) return nullptr;
  if (p.bias_n < 1 || p.bias_q < 1 || p.bias_k < 1 || (p.bias_heads != 1 && p.bias_heads != p.heads)) return "its bias has no sizes";
  const double count = double(p.bias_n) * p.bias_heads * p.bias_q * p.bias_k;
  return count <= kMaxElements && c.holds(p.bias, int64_t(count) * 4) ? nullptr : "its bias lies outside";
}

const char* check(const StepCheck& c) {
  const Payload& p = c.payload<Payload>();
  if (p.heads < 1 || p.kv_heads < 1 || p.heads % p.kv_heads || p.width < 1 || p.v_width < 1) return "its heads have no sizes";
  for (const char* why : {check_tokens(c, kQ, p.q_channel, int64_t(p.heads) * p.width), check_tokens(c, kK, p.k_channel, int64_t(p.kv_heads) * p.width),
                          check_tokens(c, kV, p.v_channel, int64_t(p.kv_heads) * p.v_width), check_bias(c, p), check_scale(p.q_scale, p.q_zero),
                          check_scale(p.k_scale, p.k_zero), check_scale(p.v_scale, p.v_zero), check_output(p)})
    if (why) return why;
  if (c.y.rank != 3 || c.y.channels != int64_t(p.heads) * p.v_width) return "its output is not as wide as its heads";
  if (!(p.exponent > 0.0f) || !std::isfinite(p.exponent)) return "the factor of its scores is not finite and above 0";
  if (p.int8_from < 0) return "its products become int8 from less than 0 keys on";
  return within(p.causal, 0, 1) ? nullptr : "its flag is neither 0 nor 1";
}

// n, heads, tokens of q and of k of the bias; all 0 where there is none.
ProgramShape bias_shape(const StepCall& call) {
  const Payload& p = call.payload<Payload>();
  if (call.read(kBias) >= 0) return call.shape(call.read(kBias));
  return has_constant(p) ? ProgramShape{p.bias_n, p.bias_heads, p.bias_q, p.bias_k} : ProgramShape{0, 0, 0, 0};
}

std::string shape(const StepCall& call, ProgramShape& y) {
  const Payload& p = call.payload<Payload>();
  const ProgramShape &q = call.shape(call.read(kQ)), &k = call.shape(call.read(kK)), &v = call.shape(call.read(kV));
  if (q.n != k.n || k.n != v.n || k.h != v.h)
    return sentence("its queries are ", q.n, "x", q.h, ", its keys ", k.n, "x", k.h, " and its values ", v.n, "x", v.h);
  y.h = q.h;
  const ProgramShape b = bias_shape(call);
  if (call.read(kBias) < 0 && !has_constant(p)) return {};
  const bool images = call.read(kBias) < 0 || b.n == 1 || b.n == q.n;
  if (images && (b.h == 1 || b.h == p.heads) && (b.w == 1 || b.w == q.h) && b.c == k.h) return {};
  return sentence("its bias is ", b.n, "x", b.h, "x", b.w, "x", b.c, " for ", q.n, "x", p.heads, " heads of ", q.h, " queries and ", k.h, " keys");
}

Operand part_of(const StepCall& call, int i, int32_t channel, float scale, int32_t zero) {
  Operand o = operand_of(call, i, scale, zero);
  if (o.data) o.data = static_cast<const char*>(o.data) + channel * size_of(o.type);
  return o;
}

AttentionProblem problem(const StepCall& call) {
  const Payload& s = call.payload<Payload>();
  const ProgramShape &q = call.shape(call.read(kQ)), &k = call.shape(call.read(kK)), &v = call.shape(call.read(kV));
  AttentionProblem p;
  p.batch = q.n, p.q_tokens = q.h, p.k_tokens = k.h;
  p.heads = s.heads, p.kv_heads = s.kv_heads, p.width = s.width, p.v_width = s.v_width;
  p.q = part_of(call, kQ, s.q_channel, s.q_scale, s.q_zero), p.q_step = q.c;
  p.k = part_of(call, kK, s.k_channel, s.k_scale, s.k_zero), p.k_step = k.c;
  p.v = part_of(call, kV, s.v_channel, s.v_scale, s.v_zero), p.v_step = v.c;
  p.exponent = s.exponent, p.causal = s.causal;
  p.int8_products = has_int8_products(s, k.h);
  const ProgramShape b = bias_shape(call);
  p.bias = call.read(kBias) >= 0 ? call.data_as<const float>(call.read(kBias)) : call.constant<float>(s.bias);
  p.bias_n = std::max<int64_t>(b.n, 1);
  p.bias_strides[0] = b.h * b.w * b.c, p.bias_strides[1] = b.h > 1 ? b.w * b.c : 0, p.bias_strides[2] = b.w > 1 ? b.c : 0;
  p.y = call.data(call.step.y);
  p.epilogue = output_of(call, s);
  return p;
}

int64_t plan(const StepCall& call, int threads, void*) { return attention_workspace(problem(call), threads); }

void run(const StepCall& call, const void*, const Parallel& parallel, void* workspace) { attention(problem(call), call.isa, parallel, workspace); }

double macs(const StepCall& call) {
  const Payload& p = call.payload<Payload>();
  return double(call.y_shape().h) * double(call.shape(call.read(kK)).h) * p.heads * (double(p.width) + p.v_width);
}

}  // namespace

const StepType attention_step{.name = "attention", .payload = kPayload<Payload>, .most_reads = 4,
                              .check = check, .shape = shape, .plan = plan, .run = run, .macs = macs};

}  // namespace qk
