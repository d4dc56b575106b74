// Forced alignment: one block per utterance, one thread per pair of states (a label and the blank after it), one warp
// per 32 pairs.
//
// The recursion, its ties and its sums of doubles are those of csrc/cpu/forced_align_run.h. Only the last pair's states
// go from warp to warp: warp w is one block of frames behind warp w - 1 and finds what that one left for it in shared
// memory, so that the whole block meets at one barrier per block of frames. Targets that need more warps than a block
// has are taken in strips of pairs, each over all its frames, with the last pair's states kept in global memory.
#include <limits>

#include "../core/ctc_topology.h"
#include "fastctc/forced_align_cuda.h"
#include "platform.h"

namespace fastctc {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kLanes = 32;
constexpr int kMostWarps = 32;
constexpr int kFrames = 8;  // in a block of frames
// Words of back-pointers for 32 pairs, a bit for each: l_i came into b_i; b_(i-1) into l_i; l_(i-1) into l_i, which
// overrules the one before.
constexpr int kWords = 3;

// scores are float16, bfloat16, float or double in device memory
__device__ __forceinline__ double to_double(double x) { return x; }
__device__ __forceinline__ double to_double(float x) { return x; }
__device__ __forceinline__ double to_double(__half x) { return __half2float(x); }
__device__ __forceinline__ double to_double(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class X>
struct RealOf {
  using type = float;
};
template <>
struct RealOf<double> {
  using type = double;
};

__device__ __forceinline__ double infinite() { return __longlong_as_double(0x7ff0000000000000ll); }

struct Scratch {
  uint32_t* back;      // (N, T, groups, kWords)
  double* normaliser;  // (N, T), logits only
  double* edges;       // (N, T, 2), with more than kMostWarps groups only
  int64_t groups;      // of 32 pairs, in the longest target
  int64_t bytes;
};

Scratch lay_out(const ForcedAlignCudaShape& shape, void* memory) {
  Scratch s{};
  s.groups = shape.max_labels / kLanes + 1;
  char* const base = static_cast<char*>(memory);
  const auto take = [&](int64_t bytes) {
    char* const at = base + s.bytes;
    s.bytes += (bytes + 255) / 256 * 256;
    return at;
  };
  const int64_t frames = shape.N * shape.T;
  s.back = reinterpret_cast<uint32_t*>(take(frames * s.groups * kWords * int64_t(sizeof(uint32_t))));
  if (shape.from_logits) s.normaliser = reinterpret_cast<double*>(take(frames * int64_t(sizeof(double))));
  if (s.groups > kMostWarps) s.edges = reinterpret_cast<double*>(take(frames * 2 * int64_t(sizeof(double))));
  return s;
}

// Log of each frame's softmax sum, one warp per frame; NaN where there is no log-softmax. The sum over what is below
// the maximum is kept apart: where a model is sure, it is all there is.
template <class X>
__global__ void __launch_bounds__(256) normalise_kernel(ForcedAlignCudaParams p, Scratch scratch) {
  using Real = typename RealOf<X>::type;
  const int lane = int(threadIdx.x) % kLanes;
  const int64_t warps = int64_t(gridDim.x) * (blockDim.x / kLanes), T = p.shape.T, C = p.shape.C;
  for (int64_t r = int64_t(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes; r < p.shape.N * T; r += warps) {
    const int64_t n = r / T, t = r % T;
    if (t >= p.input_lengths[n]) continue;
    const X* const row = static_cast<const X*>(p.scores) + t * p.scores_stride_t + n * p.scores_stride_n;
    Real top = -Real(infinite());
    for (int64_t c = lane; c < C; c += kLanes) {
      const Real x = Real(to_double(row[c]));
      top = x > top ? x : top;
    }
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const Real other = __shfl_xor_sync(kAllLanes, top, step);
      top = other > top ? other : top;
    }
    Real below = 0;
    int at_top = 0;
    for (int64_t c = lane; c < C; c += kLanes) {
      const Real x = Real(to_double(row[c]));
      if (x == top)
        ++at_top;
      else
        below += exp(x - top);
    }
    double sum = below;
    for (int step = kLanes / 2; step > 0; step /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, step);
      at_top += __shfl_xor_sync(kAllLanes, at_top, step);
    }
    // a maximum of +-inf makes NaN
    if (lane == 0) scratch.normaliser[r] = top + log(at_top + sum + double(top - top));
  }
}

// What the threads of a block share.
struct Row {
  int64_t T, S;
  const int64_t* labels;
  int fault;  // a ForcedAlignFault, the same for all threads
};

// Finds row n and checks it. `counts` are three zeroed words of shared memory, `flag` a zeroed one.
__device__ Row find_row(const ForcedAlignCudaParams& p, int64_t n, unsigned long long* counts, int* flag) {
  Row row{p.input_lengths[n], p.target_lengths[n], p.targets + n * p.targets_stride, 0};
  bool bad = row.T < 0 || row.T > p.shape.T || row.S < 0 || row.S > p.shape.max_labels || row.S > p.targets_numel;
  if (p.targets_stride == 0) {
    unsigned long long before = 0, all = 0;
    bool out_of_range = false;
    for (int64_t k = threadIdx.x; k < p.shape.N; k += blockDim.x) {
      const int64_t length = p.target_lengths[k];
      out_of_range |= length < 0 || length > p.targets_numel;
      all += (unsigned long long)length;
      if (k < n) before += (unsigned long long)length;
    }
    if (out_of_range) atomicOr(flag, 1);
    atomicAdd(&counts[0], before);
    atomicAdd(&counts[1], all);
    __syncthreads();
    bad |= *flag != 0 || counts[1] != (unsigned long long)p.targets_numel;
    row.labels = p.targets + counts[0];
  }
  if (!bad) {
    unsigned long long repeats = 0;
    bool out_of_range = false;
    for (int64_t i = threadIdx.x; i < row.S; i += blockDim.x) {
      const int64_t label = row.labels[i];
      out_of_range |= label < 0 || label >= p.shape.C || label == p.blank;
      if (i > 0) repeats += label == row.labels[i - 1];
    }
    if (out_of_range) atomicOr(flag, 2);
    atomicAdd(&counts[2], repeats);
  }
  __syncthreads();
  if (bad || (*flag & 2))
    row.fault = int(ForcedAlignFault::bad_input);
  else if (row.T < row.S + int64_t(counts[2]))
    row.fault = int(ForcedAlignFault::impossible);
  return row;
}

// Shared memory through which a pair's states go from the warp below to the one above: for each frame of a block those
// of the frame before, by parity of the block of frames.
struct Edges {
  double blank[2][kMostWarps + 1][kFrames];
  double label[2][kMostWarps + 1][kFrames];
};

// The pairs [32 * first_group, 32 * (first_group + warps)) over all their frames. Returns this thread's states after
// the last frame.
template <class X>
struct Strip {
  const ForcedAlignCudaParams& p;
  const Row& row;
  const X* scores;  // of this utterance
  uint32_t* back;   // likewise
  int64_t groups;   // the stride of back
  double* carried;  // (T, 2): states below this strip, replaced by those below the next one
  int64_t first_group;
  int64_t warps;
  Edges& edges;
  int* fault;

  // The blocks of frames in which group g has to be computed: when its first pair can be reached by their end, and its
  // last one, or the pair after it one frame later, can still reach the end of the target.
  __device__ int64_t first_block(int64_t g) const { return g == 0 ? 0 : g * (kLanes / kFrames) - 1; }
  __device__ int64_t end_block(int64_t g) const {
    const int64_t all = (row.T + kFrames - 1) / kFrames, last_frame = g * kLanes + kLanes - 1 - row.S + row.T;
    const int64_t needed = last_frame < 0 ? 0 : last_frame / kFrames + 1;
    return needed < all ? needed : all;
  }

  __device__ __forceinline__ X score(int64_t t, int64_t label) const {
    return t < row.T ? scores[t * p.scores_stride_t + label] : X(0.f);
  }

  // What is no number counts as -inf; where a path can read it the row has a fault.
  __device__ __forceinline__ double checked(double y, bool readable) const {
    if (y < infinite()) return y;
    if (readable) atomicOr(fault, 1);
    return -infinite();
  }

  __device__ void run(double& b, double& l) {
    const int lane = int(threadIdx.x) % kLanes, warp = int(threadIdx.x) / kLanes;
    const int64_t group = first_group + warp, pair = group * kLanes + lane;
    const bool more = first_group + warps < row.S / kLanes + 1;
    b = pair == 0 ? 0 : -infinite();
    l = -infinite();
    int64_t label = p.blank;
    bool skips = false;
    if (warp < warps && pair >= 1 && pair <= row.S) {
      label = row.labels[pair - 1];
      skips = pair >= 2 && row.labels[pair - 2] != label;
    }
    const int64_t start = first_block(first_group), first = first_block(group);
    const int64_t end = warp < warps ? end_block(group) : 0;
    const int64_t below_end = first_group == 0 ? 0 : end_block(first_group - 1);
    X label_scores[kFrames], blank_scores[kFrames];
#pragma unroll
    for (int f = 0; f < kFrames; ++f) {
      label_scores[f] = first < end ? score(first * kFrames + f, label) : X(0.f);
      blank_scores[f] = first < end ? score(first * kFrames + f, p.blank) : X(0.f);
    }
    const int64_t steps = end_block(first_group + warps - 1) - start + warps - 1;
    for (int64_t k = 0; k < steps; ++k) {
      const int64_t block = start + k - warp;
      if (block >= first && block < end) {
        const int64_t t0 = block * kFrames;
        const int parity = int(block % 2);
        if (warp == 0) {
          if (lane < kFrames) {
            const bool below = block < below_end && t0 + lane < row.T;
            edges.blank[parity][0][lane] = below ? carried[2 * (t0 + lane)] : -infinite();
            edges.label[parity][0][lane] = below ? carried[2 * (t0 + lane) + 1] : -infinite();
          }
          __syncwarp();
        }
#pragma unroll
        for (int f = 0; f < kFrames; ++f) {
          const int64_t t = t0 + f;
          if (t >= row.T) continue;
          const bool reached = pair <= t + 1 && pair >= row.S - (row.T - 1 - t);
          const double y = checked(to_double(label_scores[f]), pair >= 1 && pair <= row.S && reached);
          const double y_blank = checked(to_double(blank_scores[f]), row.T > row.S);
          label_scores[f] = score(t + kFrames, label);
          blank_scores[f] = score(t + kFrames, p.blank);
          double before = __shfl_up_sync(kAllLanes, b, 1), skipped = __shfl_up_sync(kAllLanes, l, 1);
          if (lane == 0) {
            before = edges.blank[parity][warp][f];
            skipped = edges.label[parity][warp][f];
          }
          if (lane == kLanes - 1) {
            edges.blank[parity][warp + 1][f] = b;
            edges.label[parity][warp + 1][f] = l;
          }
          const bool from_label = l > b, from_blank = before > l;
          const double nearer = from_blank ? before : l;
          const bool from_skipped = skips && skipped > nearer;
          const unsigned word0 = __ballot_sync(kAllLanes, from_label);
          const unsigned word1 = __ballot_sync(kAllLanes, from_blank);
          const unsigned word2 = __ballot_sync(kAllLanes, from_skipped);
          b = (from_label ? l : b) + y_blank;
          l = (from_skipped ? skipped : nearer) + y;
          if (lane < kWords) back[(t * groups + group) * kWords + lane] = lane == 0 ? word0 : lane == 1 ? word1 : word2;
        }
        if (more && warp == warps - 1) {
          __syncwarp();
          if (lane < kFrames && t0 + lane < row.T) {
            carried[2 * (t0 + lane)] = edges.blank[parity][warps][lane];
            carried[2 * (t0 + lane) + 1] = edges.label[parity][warps][lane];
          }
        }
      }
      __syncthreads();
    }
  }
};

// The path, from its last state back, 32 frames at a time: each lane looks up one frame's back-pointers of the 32 pairs
// that the path can be in, and every lane walks through all of them.
template <class X>
__device__ void trace_back(const ForcedAlignCudaParams& p, const Scratch& scratch, int64_t n, const Row& row,
                           const uint32_t* back, bool on_label) {
  using Real = typename RealOf<X>::type;
  const int lane = int(threadIdx.x) % kLanes;
  int64_t pair = row.S;
  for (int64_t top = row.T - 1; top >= 0; top -= kLanes) {
    const int64_t t = top - lane, group = pair / kLanes;
    unsigned window[kWords];  // bit 31 is this pair's, the ones below those of the pairs before it
    for (int word = 0; word < kWords; ++word) {
      const uint32_t* const at = back + (t * scratch.groups + group) * kWords + word;
      const unsigned high = t >= 0 ? at[0] : 0, low = t >= 0 && group > 0 ? at[-kWords] : 0;
      window[word] = unsigned(((uint64_t(high) << 32) | low) >> (pair % kLanes + 1));
    }
    const int frames = int(top < kLanes - 1 ? top + 1 : kLanes);
    int64_t my_pair = 0;
    bool my_label = false;
    int bit = kLanes - 1;
    for (int f = 0; f < frames; ++f) {
      const unsigned word0 = __shfl_sync(kAllLanes, window[0], f), word1 = __shfl_sync(kAllLanes, window[1], f);
      const unsigned word2 = __shfl_sync(kAllLanes, window[2], f);
      if (lane == f) {
        my_pair = pair - (kLanes - 1 - bit);
        my_label = on_label;
      }
      const bool skipped = on_label && (word2 >> bit & 1), from_blank = on_label && !skipped && (word1 >> bit & 1);
      on_label = on_label ? !from_blank : (word0 >> bit & 1);
      bit -= skipped || from_blank;
    }
    pair -= kLanes - 1 - bit;
    if (t >= 0) {
      const int64_t label = my_label ? row.labels[my_pair - 1] : p.blank;
      const double score =
          to_double(static_cast<const X*>(p.scores)[t * p.scores_stride_t + n * p.scores_stride_n + label]);
      p.paths[n * p.shape.T + t] = label;
      static_cast<Real*>(p.path_scores)[n * p.shape.T + t] =
          Real(p.shape.from_logits ? score - scratch.normaliser[n * p.shape.T + t] : score);
    }
  }
}

template <class X>
__global__ void __launch_bounds__(kLanes* kMostWarps) align_kernel(ForcedAlignCudaParams p, Scratch scratch) {
  using Real = typename RealOf<X>::type;
  FASTCTC_SHARED(Edges, edges, 1);
  FASTCTC_SHARED(unsigned long long, counts, 3);
  FASTCTC_SHARED(int, flags, 2);  // of find_row; NaN was read
  FASTCTC_SHARED(double, last, 2);
  const int64_t n = blockIdx.x, T = p.shape.T;
  if (threadIdx.x < 3) counts[threadIdx.x] = 0;
  if (threadIdx.x < 2) flags[threadIdx.x] = 0;
  __syncthreads();
  Row row = find_row(p, n, counts, &flags[0]);
  bool on_label = false;
  uint32_t* const back = scratch.back + n * T * scratch.groups * kWords;
  if (row.fault == 0 && row.T > 0) {
    if (p.shape.from_logits)
      for (int64_t t = threadIdx.x; t < row.T; t += blockDim.x) {
        const double normaliser = scratch.normaliser[n * T + t];
        if (normaliser != normaliser) atomicOr(&flags[1], 1);
      }
    const int64_t groups = row.S / kLanes + 1, most = int64_t(blockDim.x) / kLanes;
    for (int64_t g = 0; g < groups; g += most) {
      const int64_t warps = groups - g < most ? groups - g : most;
      double* const carried = groups > most ? scratch.edges + n * T * 2 : nullptr;
      double b, l;
      Strip<X>{p,
               row,
               static_cast<const X*>(p.scores) + n * p.scores_stride_n,
               back,
               scratch.groups,
               carried,
               g,
               warps,
               edges[0],
               &flags[1]}
          .run(b, l);
      if (g * kLanes + threadIdx.x == row.S) {
        last[0] = b;
        last[1] = l;
      }
    }
    __syncthreads();
    on_label = !(last[0] > last[1]);
    if (flags[1])
      row.fault = int(ForcedAlignFault::not_a_number);
    else if (last[on_label] == -infinite())
      row.fault = int(ForcedAlignFault::impossible);
  }
  if (threadIdx.x == 0) p.row_faults[n] = row.fault;
  if (row.fault == 0 && threadIdx.x < kLanes) trace_back<X>(p, scratch, n, row, back, on_label);
  const Real filler = Real(row.fault == 0                                     ? 0
                           : row.fault == int(ForcedAlignFault::not_a_number) ? infinite() - infinite()
                                                                              : -infinite());
  for (int64_t t = (row.fault ? 0 : row.T) + threadIdx.x; t < T; t += blockDim.x) {
    p.paths[n * T + t] = row.fault ? -1 : p.blank;
    static_cast<Real*>(p.path_scores)[n * T + t] = filler;
  }
}

template <class X>
cudaError_t launch_kernels(const ForcedAlignCudaParams& p) {
  const Scratch scratch = lay_out(p.shape, p.scratch);
  const cudaStream_t stream = static_cast<cudaStream_t>(p.stream);
  if (p.shape.from_logits) {
    constexpr int64_t kRows = 256 / kLanes, kMostBlocks = int64_t(1) << 20;
    const int64_t blocks = (p.shape.N * p.shape.T + kRows - 1) / kRows;
    const cudaError_t error = launch(normalise_kernel<X>, dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks)),
                                     dim3(256), 0, stream, p, scratch);
    if (error != cudaSuccess) return error;
  }
  const int64_t warps = scratch.groups < kMostWarps ? scratch.groups : kMostWarps;
  return launch(align_kernel<X>, dim3(unsigned(p.shape.N)), dim3(unsigned(warps * kLanes)), 0, stream, p, scratch);
}

cudaError_t launch_typed(const ForcedAlignCudaParams& p) {
  switch (p.shape.dtype) {
    case DType::float16:
      return launch_kernels<__half>(p);
    case DType::bfloat16:
      return launch_kernels<__nv_bfloat16>(p);
    case DType::float32:
      return launch_kernels<float>(p);
    case DType::float64:
      return launch_kernels<double>(p);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t forced_align_cuda_scratch_bytes(const ForcedAlignCudaShape& shape) { return lay_out(shape, nullptr).bytes; }

int forced_align_cuda(const ForcedAlignCudaParams& params) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess) error = cudaSetDevice(params.device);
  if (error != cudaSuccess) return int(error);
  error = launch_typed(params);
  cudaSetDevice(before);
  return int(error);
}

}  // namespace fastctc
