// Our reading of the hardware, one instruction at a time: which lane holds what, what a descriptor names, how floats round.
// Operands are laid out as prim.cuh and prim_sm90.cuh say; what comes out is compared with plain arithmetic. Built by g++ it
// runs in the emulator, which must agree; built by `nvcc -x cu`, with tensor_map.cu, it runs on a GPU, where a line that is not "ok" names the
// reading that is wrong. Exits with 1 where there is one.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "../../csrc/cuda/index.h"
#include "../../csrc/cuda/launch.cuh"
#include "../../csrc/cuda/prim_async.cuh"

namespace qk {
namespace {

using Words32 = std::vector<uint32_t>;

// ---- memory of the device

template <class T>
class OnDevice {
 public:
  explicit OnDevice(std::vector<T> values) : host_(std::move(values)), data_(host_.data()) {
#ifdef QK_EMU
    emu::announce(data_, bytes());
#else
    cudaMalloc(&data_, size_t(bytes()));
    cudaMemcpy(data_, host_.data(), size_t(bytes()), cudaMemcpyHostToDevice);
#endif
  }
  T* data() { return data_; }
  const std::vector<T>& back() {
#ifndef QK_EMU
    if (const cudaError_t error = cudaMemcpy(host_.data(), data_, size_t(bytes()), cudaMemcpyDeviceToHost))
      std::printf("CUDA: %s\n", cudaGetErrorString(error));
    cudaFree(data_);
#endif
    return host_;
  }

 private:
  int64_t bytes() const { return int64_t(host_.size() * sizeof(T)); }
  std::vector<T> host_;
  T* data_;
};

template <auto kernel, class... Args>
void run(int64_t blocks, int threads, int shared_bytes, const Args&... args) {
  const int error = cuda::launch<kernel>({blocks}, threads, shared_bytes, nullptr, args...);
  if (error) std::printf("CUDA error %d: the kernel was not launched\n", error), std::exit(2);
}

int device_arch() {
#ifdef QK_EMU
  return QK_ARCH / 10;
#else
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0);
  return major * 10 + minor;
#endif
}

uint32_t random_word() {
  static uint64_t state = 1;
  state = state * 6364136223846793005u + 1442695040888963407u;
  return uint32_t(state >> 32);
}

template <class T>
std::vector<T> random_values(size_t count) {
  std::vector<T> v(count);
  for (T& x : v) x = T(random_word());
  return v;
}

// ---- lines of the report

int wrong_readings = 0;

template <class T>
void compare(const char* reading, const std::vector<T>& got, const std::vector<T>& expected) {
  size_t wrong = 0, first = 0;
  for (size_t i = got.size(); i-- > 0;)
    if (got[i] != expected[i]) ++wrong, first = i;
  if (!wrong) return void(std::printf("%s: ok\n", reading));
  ++wrong_readings;
  std::printf("%s: wrong, %zu of %zu; value %zu is %" PRId64 ", expected %" PRId64 "\n", reading, wrong, got.size(), first,
              int64_t(got[first]), int64_t(expected[first]));
}

// ---- a warp

QK_KERNEL(32) matrices_kernel(uint32_t* out) {
  const int lane = thread_index();
  char* const row = shared_memory() + lane * 16;
  const uint32_t first = uint32_t(lane) * 4;
  shared_store(row, Words{{first, first + 1, first + 2, first + 3}});
  block_sync();
  uint32_t r[4];
  ldmatrix_x4(r, row);
  for (int m = 0; m < 4; ++m) global_store(out + lane * 4 + m, r[m]);
}

void read_matrices() {
  OnDevice<uint32_t> out(Words32(128));
  run<matrices_kernel>(1, 32, 512, out.data());
  Words32 expected;
  for (uint32_t lane = 0; lane < 32; ++lane)
    for (uint32_t m = 0; m < 4; ++m) expected.push_back((m * 8 + lane / 4) * 4 + lane % 4);
  compare("ldmatrix: rows and words of a lane", out.back(), expected);
}

QK_DEVICE uint32_t four(const int8_t* p) { return global_load<uint32_t>(p); }

// a [16][32], b [8][32], c [16][8]
QK_KERNEL(32) product_kernel(const int8_t* a, const int8_t* b, int32_t* c) {
  const int g = lane_index() / 4, t = lane_index() % 4 * 4;
  const uint32_t mine[4] = {four(a + g * 32 + t), four(a + (g + 8) * 32 + t), four(a + g * 32 + 16 + t), four(a + (g + 8) * 32 + 16 + t)};
  int32_t* const at[4] = {c + g * 8 + t / 2, c + g * 8 + t / 2 + 1, c + (g + 8) * 8 + t / 2, c + (g + 8) * 8 + t / 2 + 1};
  int32_t sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = global_load<int32_t>(at[i]);
  multiply(sums, mine, four(b + g * 32 + t), four(b + g * 32 + 16 + t));
  for (int i = 0; i < 4; ++i) global_store(at[i], sums[i]);
}

// a [8][16], b [8][16], c [8][8]
QK_KERNEL(32) small_product_kernel(const int8_t* a, const int8_t* b, int32_t* c) {
  const int g = lane_index() / 4, t = lane_index() % 4 * 4;
  int32_t* const at = c + g * 8 + t / 2;
  int32_t first = global_load<int32_t>(at), second = global_load<int32_t>(at + 1);
  mma_8816(first, second, four(a + g * 16 + t), four(b + g * 16 + t));
  global_store(at, first);
  global_store(at + 1, second);
}

// c[m][n] += a[m][k] * b[n][k], rows of a and b `stride` apart.
void add_product(std::vector<int32_t>& c, const int8_t* a, const int8_t* b, int m, int n, int k, int stride) {
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j)
      for (int d = 0; d < k; ++d) c[size_t(i * n + j)] += a[i * stride + d] * b[j * stride + d];
}

template <auto kernel>
void multiply_with(const char* reading, int m, int k) {
  const auto a = random_values<int8_t>(size_t(m * k)), b = random_values<int8_t>(size_t(8 * k));
  std::vector<int32_t> expected(size_t(m * 8), 1000);
  OnDevice<int8_t> x(a), w(b);
  OnDevice<int32_t> c(expected);
  run<kernel>(1, 32, 0, static_cast<const int8_t*>(x.data()), static_cast<const int8_t*>(w.data()), c.data());
  add_product(expected, a.data(), b.data(), m, 8, k, k);
  compare(reading, c.back(), expected);
}

// out[16 * (lane ^ 1)], what a neighbour copied; every third copy is of nothing.
template <int Bytes>
QK_KERNEL(32) copies_kernel(const char* from, char* out) {
  char* const memory = shared_memory();
  const int lane = thread_index(), other = lane ^ 1;
  copy_async<Bytes>(memory + lane * Bytes, from + lane * Bytes, lane % 3 != 0);
  copy_commit();
  copy_wait<0>();
  block_sync();
  for (int i = 0; i < Bytes; i += 4) global_store(out + other * Bytes + i, shared_load<uint32_t>(memory + other * Bytes + i));
}

template <int Bytes>
void copy_asynchronously(const char* reading) {
  std::vector<char> expected = random_values<char>(32 * Bytes);
  OnDevice<char> from(expected), out(std::vector<char>(32 * Bytes, 1));
  run<copies_kernel<Bytes>>(1, 32, 32 * Bytes, static_cast<const char*>(from.data()), out.data());
  for (int lane = 0; lane < 32; lane += 3) std::memset(expected.data() + lane * Bytes, 0, Bytes);
  compare(reading, out.back(), expected);
}

QK_KERNEL(32) shuffles_kernel(const uint32_t* in, uint32_t* out) {
  const uint32_t mine = global_load<uint32_t>(in + thread_index());
  for (int i = 0; i < 5; ++i) global_store(out + i * 32 + thread_index(), shuffle_xor(mine, 1 << i));
  atomic_max(out + 160, mine);
}

void shuffle() {
  const Words32 in = random_values<uint32_t>(32);
  OnDevice<uint32_t> x(in), out(Words32(161));
  run<shuffles_kernel>(1, 32, 0, static_cast<const uint32_t*>(x.data()), out.data());
  Words32 expected;
  for (uint32_t i = 0; i < 5; ++i)
    for (uint32_t lane = 0; lane < 32; ++lane) expected.push_back(in[lane ^ 1u << i]);
  expected.push_back(0);
  for (uint32_t v : in) expected.back() = v > expected.back() ? v : expected.back();
  compare("shuffle, and atomic maximum", out.back(), expected);
}

// ---- arithmetic

template <class To, class From>
QK_DEVICE To bits(From v) {
  To to;
  memcpy(&to, &v, sizeof to);
  return to;
}

template <class To, class From>
To bits_on_host(From v) {
  To to;
  std::memcpy(&to, &v, sizeof to);
  return to;
}

constexpr int kResults = 7;

QK_KERNEL(32) arithmetic_kernel(const uint32_t* in, uint32_t* out) {
  const int64_t i = block_x() * 32 + thread_index();
  const uint32_t word = global_load<uint32_t>(in + i * 3);
  const float a = bits<float>(word), b = bits<float>(global_load<uint32_t>(in + i * 3 + 1)), c = bits<float>(global_load<uint32_t>(in + i * 3 + 2));
  const uint32_t results[kResults] = {bits<uint32_t>(from_f16(uint16_t(word))), to_f16(a), uint32_t(to_int_rn(b)), bits<uint32_t>(fma_rn(a, b, c)),
                                      bits<uint32_t>(1.0f / a), bits<uint32_t>(a * b + c), bits<uint32_t>(float(int32_t(word)))};
  for (int r = 0; r < kResults; ++r) global_store(out + i * kResults + r, results[r]);
}

float value_of_f16(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const float magnitude = exponent == 31 ? float(INFINITY) : float(std::ldexp(exponent ? 1024 + mantissa : mantissa, (exponent ? exponent : 1) - 25));
  return h & 0x8000 ? -magnitude : magnitude;
}

uint16_t nearest_f16(float v) {
  int exponent = -14;
  if (v != 0) std::frexp(v, &exponent), --exponent;
  exponent = exponent < -14 ? -14 : exponent;
  const double steps = std::nearbyint(std::ldexp(std::fabs(double(v)), 10 - exponent)) + std::ldexp(exponent + 14, 10);
  return uint16_t((std::signbit(v) ? 0x8000 : 0) | int(steps < 0x7c00 ? steps : 0x7c00));
}

// No NaN goes in or comes out: which one a processor returns is its own affair.
void compute() {
  constexpr size_t kValues = 4096;
  Words32 in, expected;
  while (in.size() < kValues * 3) {
    const float a = bits_on_host<float>(random_word()), c = bits_on_host<float>(random_word());
    const float b = float(int32_t(random_word())) * (random_word() % 2 ? 0x1p-1f : 0x1p-20f);  // ties among them
    const uint32_t word = bits_on_host<uint32_t>(a);
    const float whole = std::fma(a, b, c), parts[] = {a * b, 0};
    const bool half_nan = (word & 0x7c00) == 0x7c00 && word & 0x3ff;
    if (!std::isfinite(a) || !std::isfinite(c) || std::isnan(whole) || std::isnan(parts[0] + c) || half_nan) continue;
    for (float v : {a, b, c}) in.push_back(bits_on_host<uint32_t>(v));
    const float results[] = {whole, 1.0f / a, parts[0] + c, float(int32_t(word))};
    expected.push_back(bits_on_host<uint32_t>(value_of_f16(uint16_t(word))));
    expected.push_back(nearest_f16(a));
    expected.push_back(uint32_t(int32_t(std::nearbyint(double(b)))));
    for (float v : results) expected.push_back(bits_on_host<uint32_t>(v));
  }
  OnDevice<uint32_t> x(in), out(Words32(kValues * kResults));
  run<arithmetic_kernel>(kValues / 32, 32, 0, static_cast<const uint32_t*>(x.data()), out.data());
  const Words32 all = out.back();
  const char* const readings[kResults] = {"float16 to float32", "float32 to float16", "rounding to integers", "fused multiply and add",
                                          "inverse", "multiply, then add", "integer to float32"};
  for (size_t r = 0; r < kResults; ++r) {
    Words32 got, wanted;
    for (size_t i = r; i < all.size(); i += kResults) got.push_back(all[i]), wanted.push_back(expected[i]);
    compare(readings[r], got, wanted);
  }
}

// ---- a warpgroup

constexpr int kRow = 128;  // bytes of K in a row of both operands

// a [2][64][kRow] through registers, b [128][kRow] through shared memory and a descriptor, c [2][64][128].
template <int Steps>
QK_KERNEL(128) warpgroup_kernel([[maybe_unused]] const int8_t* a, [[maybe_unused]] const int8_t* b, [[maybe_unused]] int32_t* c) {
#if QK_WGMMA
  char* const memory = shared_memory();
  for (int chunk = 0; chunk < kRow / 16; ++chunk)
    shared_store(memory + thread_index() * kRow + cuda::x_chunk<kRow>(thread_index(), chunk) * 16, global_load<Words>(b + thread_index() * kRow + chunk * 16));
  fence_async_proxy();
  block_sync();
  const int row = warp_index() * 16 + lane_index() / 4, t = lane_index() % 4 * 4;
  int32_t sums[2][64] = {};
  uint32_t mine[Steps][2][4];
  QK_UNROLL for (int k = 0; k < Steps; ++k)
    QK_UNROLL for (int j = 0; j < 2; ++j)
      QK_UNROLL for (int h = 0; h < 4; ++h) mine[k][j][h] = four(a + (j * 64 + row + h % 2 * 8) * kRow + k * 32 + h / 2 * 16 + t);
  const uint64_t columns = matrix_descriptor(memory);
  wgmma_fence();
  QK_UNROLL for (int k = 0; k < Steps; ++k)
    QK_UNROLL for (int j = 0; j < 2; ++j) wgmma_m64n128k32(sums[j], mine[k][j], columns + k * 2);
  wgmma_commit();
  wgmma_wait<0>(sums);
  QK_UNROLL for (int j = 0; j < 2; ++j)
    QK_UNROLL for (int v = 0; v < 64; ++v)
      global_store(c + (j * 64 + row + v % 4 / 2 * 8) * 128 + v / 4 * 8 + t / 2 + v % 2, sums[j][v]);
#endif
}

std::vector<int32_t> first_columns(const std::vector<int32_t>& c, size_t columns) {
  std::vector<int32_t> some;
  for (size_t i = 0; i < c.size(); ++i)
    if (i % 128 < columns) some.push_back(c[i]);
  return some;
}

// Only the first `columns` of c, rows of b, are looked at.
template <int Steps>
void multiply_as_warpgroup(const char* reading, size_t columns) {
  const auto a = random_values<int8_t>(128 * kRow), b = random_values<int8_t>(128 * kRow);
  std::vector<int32_t> expected(128 * 128);
  OnDevice<int8_t> x(a), w(b);
  OnDevice<int32_t> c(expected);
  run<warpgroup_kernel<Steps>>(1, 128, 128 * kRow, static_cast<const int8_t*>(x.data()), static_cast<const int8_t*>(w.data()), c.data());
  add_product(expected, a.data(), b.data(), 128, 128, Steps * 32, kRow);
  compare(reading, first_columns(c.back(), columns), first_columns(expected, columns));
}

// ---- the ring between warpgroups: what the Hopper kernels rest on, all of it together

constexpr int kRingStages = 2;
constexpr int kRingBytes = kRingStages * 128 * kRow;

// c[256,128] += a[256,K] * b[128,K], K = Steps rows of 128 bytes: one warpgroup copies b into the ring, two multiply. They
// trade registers as the production kernels do.
template <int Steps, bool Trade>
QK_KERNEL(384) ring_kernel([[maybe_unused]] const int8_t* a, [[maybe_unused]] const int8_t* b, [[maybe_unused]] int32_t* c) {
#if QK_WGMMA
  char* const memory = shared_memory();
  Barrier* const filled = reinterpret_cast<Barrier*>(memory + kRingBytes), *const freed = filled + kRingStages;
  if (thread_index() == 0) {
    for (int s = 0; s < kRingStages; ++s) barrier_init(filled + s, 128), barrier_init(freed + s, 8);
    barrier_fence();
  }
  block_sync();
  if (thread_index() >= 256) {
    if constexpr (Trade) registers_release<40>();
    const int row = thread_index() - 256;
    for (int step = 0; step < Steps; ++step) {
      const int s = step % kRingStages;
      barrier_wait(freed + s, step / kRingStages % 2 ^ 1);
      for (int chunk = 0; chunk < kRow / 16; ++chunk)
        copy_async<16>(memory + (s * 128 + row) * kRow + cuda::x_chunk<kRow>(row, chunk) * 16, b + (row * Steps + step) * kRow + chunk * 16, true);
      copy_commit();
      copy_wait<0>();
      fence_async_proxy();
      barrier_arrive(filled + s);
    }
  } else {
    if constexpr (Trade) registers_claim<232>();
    const int row = warp_index() / 4 * 128 + warp_index() % 4 * 16 + lane_index() / 4, t = lane_index() % 4 * 4;
    int32_t sums[2][64] = {};
    QK_ROLL for (int step = 0; step < Steps; ++step) {
      const int s = step % kRingStages;
      uint32_t mine[4][2][4];
      QK_UNROLL for (int k = 0; k < 4; ++k)
        QK_UNROLL for (int j = 0; j < 2; ++j)
          QK_UNROLL for (int h = 0; h < 4; ++h)
            mine[k][j][h] = four(a + ((row + j * 64 + h % 2 * 8) * Steps + step) * kRow + k * 32 + h / 2 * 16 + t);
      const uint64_t columns = matrix_descriptor(memory + s * 128 * kRow);
      barrier_wait(filled + s, step / kRingStages % 2);
      wgmma_fence();
      QK_UNROLL for (int k = 0; k < 4; ++k)
        QK_UNROLL for (int j = 0; j < 2; ++j) wgmma_m64n128k32(sums[j], mine[k][j], columns + k * 2);
      wgmma_commit();
      wgmma_wait<0>(sums);
      warp_sync();
      if (lane_index() == 0) barrier_arrive(freed + s);
    }
    QK_UNROLL for (int j = 0; j < 2; ++j)
      QK_UNROLL for (int v = 0; v < 64; ++v)
        global_store(c + (row + j * 64 + v % 4 / 2 * 8) * 128 + v / 4 * 8 + t / 2 + v % 2, sums[j][v]);
  }
#endif
}

template <int Steps, bool Trade>
void multiply_through_ring(const char* reading) {
  const auto a = random_values<int8_t>(256 * Steps * kRow), b = random_values<int8_t>(128 * Steps * kRow);
  std::vector<int32_t> expected(256 * 128);
  OnDevice<int8_t> x(a), w(b);
  OnDevice<int32_t> c(expected);
  run<ring_kernel<Steps, Trade>>(1, 384, kRingBytes + 2 * kRingStages * 8, static_cast<const int8_t*>(x.data()), static_cast<const int8_t*>(w.data()), c.data());
  add_product(expected, a.data(), b.data(), 256, 128, Steps * kRow, Steps * kRow);
  compare(reading, c.back(), expected);
}

QK_KERNEL(32) base_kernel(uint32_t* out) {
  if (thread_index() == 0) global_store(out, shared_address(shared_memory()) % 1024);
}

void ask_base() {
  OnDevice<uint32_t> out(Words32{1});
  run<base_kernel>(1, 32, 1024, out.data());
  compare("shared memory begins at a multiple of 1024", out.back(), Words32{0});
}

// ---- the copy engine

constexpr int kBoxRows = 16;

// The box at these coordinates, through shared memory, where it lies as x_chunk says; and a barrier that waits for it.
template <int Rank>
QK_KERNEL(128) box_kernel([[maybe_unused]] QK_PARAMETER cuda::TensorMap map, [[maybe_unused]] int c0, [[maybe_unused]] int c1, [[maybe_unused]] int c2, [[maybe_unused]] char* out) {
#if QK_WGMMA
  char* const memory = shared_memory();
  Barrier* const barrier = reinterpret_cast<Barrier*>(memory + kBoxRows * kRow);
  if (thread_index() == 0) {
    barrier_init(barrier, 1);
    barrier_fence();
  }
  block_sync();
  if (thread_index() == 0) {
    barrier_expect(barrier, kBoxRows * kRow);
    if constexpr (Rank == 2) bulk_load(memory, map, barrier, c0, c1);
    else bulk_load(memory, map, barrier, c0, c1, c2);
  }
  barrier_wait(barrier, 0);
  const int row = thread_index() / 8, chunk = thread_index() % 8;
  global_store(out + thread_index() * 16, shared_load<Words>(memory + row * kRow + cuda::x_chunk<kRow>(row, chunk) * 16));
#endif
}

// The last box of a tensor, beyond which there are zeros; expected(c0, c1, c2) is an offset, or -1.
template <int Rank, class Expected>
void copy_box(const char* reading, const cuda::TensorShape& shape, int c0, int c1, int c2, Expected expected_at) {
  const auto values = random_values<char>(size_t(shape.size[Rank - 1] * shape.stride[Rank - 2]));
  OnDevice<char> from(values), out(std::vector<char>(kBoxRows * kRow, 1));
  cuda::TensorMap map;
  if (const int error = cuda::make_tensor_map(&map, from.data(), shape)) std::printf("no tensor map: error %d\n", error), std::exit(2);
  run<box_kernel<Rank>>(1, 128, kBoxRows * kRow + 8, map, c0, c1, c2, out.data());
  std::vector<char> expected;
  for (int row = 0; row < kBoxRows; ++row)
    for (int k = 0; k < kRow; ++k) {
      const int64_t at = expected_at(c0 + k, row);
      expected.push_back(at < 0 ? char(0) : values[size_t(at)]);
    }
  compare(reading, out.back(), expected);
}

void copy_boxes() {
  copy_box<2>("box of two dimensions: swizzle, and zeros outside", {2, {200, 13, 1}, {208, 0}, {kRow, kBoxRows, 1}}, 128, 0, 0,
              [](int k, int row) { return k < 200 && row < 13 ? row * 208 + k : -1; });
  copy_box<3>("box of three dimensions: order of lines, and zeros outside", {3, {kRow, 10, 3}, {kRow, 10 * kRow}, {kRow, 8, 2}}, 0, 8, 2,
              [](int k, int row) { return row < 2 ? (2 * 10 + 8 + row) * kRow + k : -1; });
}

}  // namespace
}  // namespace qk

int main() {
  using namespace qk;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was read stays, should the next reading never end
  read_matrices();
  multiply_with<product_kernel>("product 16x8x32: operands and sums of a lane", 16, 32);
  multiply_with<small_product_kernel>("product 8x8x16: operands and sums of a lane", 8, 16);
  copy_asynchronously<16>("asynchronous copies of 16 bytes, and of nothing");
  copy_asynchronously<4>("asynchronous copies of 4 bytes, and of nothing");
  shuffle();
  compute();
  if (device_arch() == 90) {
    ask_base();
    copy_boxes();
    multiply_as_warpgroup<1>("warpgroup product: lanes, and the swizzle of eight rows", 8);
    multiply_as_warpgroup<1>("warpgroup product: the stride between groups of eight rows", 128);
    multiply_as_warpgroup<4>("warpgroup product: a descriptor moved along K", 128);
    multiply_through_ring<1, false>("ring: copies, fenced for the tensor cores, announced at a barrier");
    multiply_through_ring<6, false>("ring: parities of three rounds");
    multiply_through_ring<6, true>("ring: warpgroups that trade registers");
  } else {
    std::printf("warpgroup products: not on this device\n");
  }
  return wrong_readings > 0;
}
