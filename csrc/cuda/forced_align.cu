// Forced alignment: one block per utterance, one thread per pair of states (a label and the blank after it), one warp
// per 32 pairs.
//
// The recursion, its ties and its sums of doubles are those of csrc/cpu/forced_align_run.h. Only the last pair's states
// go from warp to warp: warp w is one block of frames behind warp w - 1 and finds what that one left for it in shared
// memory, so that the whole block meets at one barrier per block of frames. Targets that need more warps than a block
// has are taken in strips of pairs, each over all its frames, with the last pair's states kept in global memory.
#include "device_scope.cuh"
#include "fastctc/forced_align_cuda.h"
#include "platform.h"

namespace fastctc {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kLanes = 32;
constexpr int kMostWarps = 16;  // with more, a thread would have fewer registers than it needs
constexpr int kFrames = 8;      // in a block of frames
constexpr int kWords = 2;       // of back-pointers for 32 pairs, a bit for each: l_i > b_i; q_(i-1) > l_i

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
  double* normaliser;  // (utterances, T), logits only
  double* edges;       // (N, T), with more than kMostWarps groups only
  int groups;          // of 32 pairs, in the longest target
  int64_t bytes;
};

Scratch lay_out(const ForcedAlignCudaShape& shape, void* memory) {
  Scratch s{};
  s.groups = int(shape.max_labels / kLanes + 1);
  char* const base = static_cast<char*>(memory);
  const auto take = [&](int64_t bytes) {
    char* const at = base + s.bytes;
    s.bytes += (bytes + 255) / 256 * 256;
    return at;
  };
  const int64_t frames = shape.N * shape.T;
  s.back = reinterpret_cast<uint32_t*>(take(frames * s.groups * kWords * int64_t(sizeof(uint32_t))));
  const int64_t rows = frames / shape.targets_per_utterance;
  if (shape.from_logits) s.normaliser = reinterpret_cast<double*>(take(rows * int64_t(sizeof(double))));
  if (s.groups > kMostWarps) s.edges = reinterpret_cast<double*>(take(frames * int64_t(sizeof(double))));
  return s;
}

// Log of each frame's softmax sum, one warp per frame; NaN where there is no log-softmax. The sum over what is below
// the maximum is kept apart: where a model is sure, it is all there is.
template <class X>
__global__ void __launch_bounds__(256) normalise_kernel(ForcedAlignCudaParams p, Scratch scratch) {
  using Real = typename RealOf<X>::type;
  const int lane = int(threadIdx.x) % kLanes;
  const int64_t warps = int64_t(gridDim.x) * (blockDim.x / kLanes), T = p.shape.T, C = p.shape.C;
  const int64_t utterances = p.shape.N / p.shape.targets_per_utterance;
  for (int64_t r = int64_t(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes; r < utterances * T; r += warps) {
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
  int T, S;
  const int64_t* labels;
  int fault;  // a ForcedAlignFault, the same for all threads

  // Whether label i (of 1..S) may be followed by the next one at once.
  __device__ bool leaves(int i) const { return i >= 1 && i < S && labels[i - 1] != labels[i]; }
};

// Finds row n and checks it. `counts` are three zeroed words of shared memory, `flag` a zeroed one.
__device__ Row find_row(const ForcedAlignCudaParams& p, int64_t n, unsigned long long* counts, int* flag) {
  const int64_t T = p.input_lengths[n / p.shape.targets_per_utterance], S = p.target_lengths[n];
  bool bad = T < 0 || T > p.shape.T || S < 0 || S > p.shape.max_labels || S > p.targets_numel;
  Row row{bad ? 0 : int(T), bad ? 0 : int(S), p.targets + n * p.targets_stride, 0};
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
    for (int i = int(threadIdx.x); i < row.S; i += int(blockDim.x)) {
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

// Shared memory through which the q of a warp's last pair goes to the warp above: one for each frame of a block, by
// parity of the block.
struct Edges {
  double q[2][kMostWarps + 1][kFrames];
};

// The pairs [32 * first_group, 32 * (first_group + warps)) over all their frames.
template <class X>
struct Strip {
  const ForcedAlignCudaParams& p;
  const Row& row;
  const X* scores;  // of this utterance
  uint32_t* back;   // likewise
  int groups;       // in a frame of back
  double* carried;  // (T): q of the pair below this strip, replaced by those below the next one
  int first_group, warps;
  Edges& edges;
  int* fault;

  // The blocks of frames in which group g has to be computed: when its first pair can be reached by their end, and its
  // last one, or the pair after it one frame later, can still reach the end of the target.
  __device__ int first_block(int g) const { return g == 0 ? 0 : g * (kLanes / kFrames) - 1; }
  __device__ int end_block(int g) const {
    const int all = (row.T + kFrames - 1) / kFrames, last_frame = g * kLanes + kLanes - 1 - row.S + row.T;
    const int needed = last_frame < 0 ? 0 : last_frame / kFrames + 1;
    return needed < all ? needed : all;
  }

  // What is no number counts as -inf; where a path can read it the row has a fault, unless that is all it is to be.
  __device__ __forceinline__ double checked(double y, bool readable) const {
    if (y < infinite()) return y;
    if (readable && !p.nan_is_impossible) atomicOr(fault, 1);
    return -infinite();
  }

  // Leaves this thread's states after the last frame in b and l.
  __device__ void run(double& b, double& l) {
    const int lane = int(threadIdx.x) % kLanes, warp = int(threadIdx.x) / kLanes;
    const int group = first_group + warp, pair = group * kLanes + lane;
    b = pair == 0 ? 0 : -infinite();
    l = -infinite();
    int64_t label = p.blank;
    if (warp < warps && pair >= 1 && pair <= row.S) label = row.labels[pair - 1];
    const bool leaves = warp < warps && row.leaves(pair);
    const int start = first_block(first_group), first = first_block(group), end = warp < warps ? end_block(group) : 0;
    // the scores of the coming frames, each asked for a whole block before it is needed
    X label_scores[kFrames], blank_scores[kFrames];
    const X* next = scores + int64_t(first) * kFrames * p.scores_stride_t;
    int next_frame = first < end ? first * kFrames : row.T;
#pragma unroll
    for (int f = 0; f < kFrames; ++f) {
      label_scores[f] = next_frame < row.T ? next[label] : X(0.f);
      blank_scores[f] = next_frame < row.T ? next[p.blank] : X(0.f);
      next += p.scores_stride_t;
      ++next_frame;
    }
    uint32_t* pointers = back + (int64_t(first) * kFrames * groups + group) * kWords + lane;
    const int steps = end_block(first_group + warps - 1) - start + warps - 1;
    for (int k = 0; k < steps; ++k) {
      const int block = start + k - warp;
      if (block >= first && block < end) {
        const int t0 = block * kFrames, parity = block % 2;
        if (warp == 0) take_carried(block, lane);
#pragma unroll
        for (int f = 0; f < kFrames; ++f) {
          const int t = t0 + f;
          if (t >= row.T) continue;
          const bool reached = pair <= t + 1 && pair >= row.S - (row.T - 1 - t);
          const double y = checked(to_double(label_scores[f]), pair >= 1 && pair <= row.S && reached);
          const double y_blank = checked(to_double(blank_scores[f]), row.T > row.S);
          label_scores[f] = next_frame < row.T ? next[label] : X(0.f);
          blank_scores[f] = next_frame < row.T ? next[p.blank] : X(0.f);
          next += p.scores_stride_t;
          ++next_frame;
          const bool from_label = l > b;
          const double better = from_label ? l : b, q = leaves ? better : b;
          double before = __shfl_up_sync(kAllLanes, q, 1);
          if (lane == 0) before = edges.q[parity][warp][f];
          if (lane == kLanes - 1) edges.q[parity][warp + 1][f] = q;
          const bool moved = before > l;
          const unsigned word0 = __ballot_sync(kAllLanes, from_label), word1 = __ballot_sync(kAllLanes, moved);
          b = better + y_blank;
          l = (moved ? before : l) + y;
          if (lane < kWords) *pointers = lane == 0 ? word0 : word1;
          pointers += groups * kWords;
        }
        if (carried && warp == warps - 1) leave_carried(t0, parity, lane);
      }
      __syncthreads();
    }
  }

  // What the strip below left for the first warp, a frame for each of the first lanes.
  __device__ void take_carried(int block, int lane) {
    const int t = block * kFrames + lane;
    if (lane < kFrames) {
      const bool below = first_group > 0 && block < end_block(first_group - 1) && t < row.T;
      edges.q[block % 2][0][lane] = below ? carried[t] : -infinite();
    }
    __syncwarp();
  }

  // What the last warp leaves for the strip above.
  __device__ void leave_carried(int t0, int parity, int lane) {
    __syncwarp();
    const int t = t0 + lane;
    if (lane < kFrames && t < row.T) carried[t] = edges.q[parity][warps][lane];
  }
};

// The path, from its last state back, 31 frames at a time: each lane looks up one frame's back-pointers of the 32 pairs
// that the path can be in or come from, and every lane walks through all of them.
template <class X>
__device__ void trace_back(const ForcedAlignCudaParams& p, const Scratch& scratch, int64_t n, const Row& row,
                           const X* scores, const uint32_t* back, bool on_label) {
  using Real = typename RealOf<X>::type;
  const int64_t utterance = n / p.shape.targets_per_utterance;
  const int lane = int(threadIdx.x) % kLanes;
  int pair = row.S;
  for (int top = row.T - 1; top >= 0; top -= kLanes - 1) {
    const int t = top - lane, group = pair / kLanes;
    unsigned window[kWords];  // bit 31 is this pair's, those below are of the pairs before it
    for (int word = 0; word < kWords; ++word) {
      const uint32_t* const at = back + (int64_t(t) * scratch.groups + group) * kWords + word;
      const unsigned high = t >= 0 ? at[0] : 0, low = t >= 0 && group > 0 ? at[-kWords] : 0;
      window[word] = unsigned(((uint64_t(high) << 32) | low) >> (pair % kLanes + 1));
    }
    const unsigned leaves = __ballot_sync(kAllLanes, row.leaves(pair - (kLanes - 1) + lane));
    const int frames = top < kLanes - 1 ? top + 1 : kLanes - 1;
    int my_pair = 0;
    bool my_label = false;
    int bit = kLanes - 1;
    for (int f = 0; f < frames; ++f) {
      const unsigned from_label = __shfl_sync(kAllLanes, window[0], f), moved = __shfl_sync(kAllLanes, window[1], f);
      if (lane == f) {
        my_pair = pair - (kLanes - 1 - bit);
        my_label = on_label;
      }
      const bool moves = on_label && (moved >> bit & 1), stays = on_label && !moves;
      const unsigned labels = moves ? from_label & leaves : from_label;
      bit -= moves;
      on_label = stays || (labels >> bit & 1);
    }
    pair -= kLanes - 1 - bit;
    if (lane < frames) {
      const int64_t label = my_label ? row.labels[my_pair - 1] : p.blank;
      const double score = to_double(scores[t * p.scores_stride_t + label]);
      p.paths[n * p.shape.T + t] = label;
      static_cast<Real*>(p.path_scores)[n * p.shape.T + t] =
          Real(p.shape.from_logits ? score - scratch.normaliser[utterance * p.shape.T + t] : score);
    }
  }
}

template <class X>
__global__ void __launch_bounds__(kLanes* kMostWarps, 1) align_kernel(ForcedAlignCudaParams p, Scratch scratch) {
  using Real = typename RealOf<X>::type;
  FASTCTC_SHARED(Edges, edges, 1);
  FASTCTC_SHARED(unsigned long long, counts, 3);
  FASTCTC_SHARED(int, flags, 2);  // of find_row; NaN was read
  FASTCTC_SHARED(double, last, 2);
  const int64_t n = blockIdx.x, T = p.shape.T, utterance = n / p.shape.targets_per_utterance;
  if (threadIdx.x < 3) counts[threadIdx.x] = 0;
  if (threadIdx.x < 2) flags[threadIdx.x] = 0;
  __syncthreads();
  Row row = find_row(p, n, counts, &flags[0]);
  bool on_label = false;
  const X* const scores = static_cast<const X*>(p.scores) + utterance * p.scores_stride_n;
  uint32_t* const back = scratch.back + n * T * scratch.groups * kWords;
  if (row.fault == 0 && row.T > 0) {
    if (p.shape.from_logits)
      for (int64_t t = threadIdx.x; t < row.T; t += blockDim.x) {
        const double normaliser = scratch.normaliser[utterance * T + t];
        if (normaliser != normaliser) atomicOr(&flags[1], 1);
      }
    const int groups = row.S / kLanes + 1, most = int(blockDim.x) / kLanes;
    for (int g = 0; g < groups; g += most) {
      const int warps = groups - g < most ? groups - g : most;
      double* const carried = groups > most ? scratch.edges + n * T : nullptr;
      double b, l;
      Strip<X> strip{p, row, scores, back, scratch.groups, carried, g, warps, edges[0], &flags[1]};
      strip.run(b, l);
      if (g * kLanes + int(threadIdx.x) == row.S) {
        last[0] = b;
        last[1] = l;
      }
    }
    __syncthreads();
    on_label = !(last[0] > last[1]);
    if (flags[1])
      row.fault = int(ForcedAlignFault::not_a_number);
    else if (last[on_label ? 1 : 0] == -infinite())
      row.fault = int(ForcedAlignFault::impossible);
  }
  if (threadIdx.x == 0) p.row_faults[n] = row.fault;
  if (row.fault == 0 && threadIdx.x < kLanes) trace_back(p, scratch, n, row, scores, back, on_label);
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
    const int64_t rows = p.shape.N / p.shape.targets_per_utterance * p.shape.T, blocks = (rows + kRows - 1) / kRows;
    const cudaError_t error = launch(normalise_kernel<X>, dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks)),
                                     dim3(256), 0, stream, p, scratch);
    if (error != cudaSuccess) return error;
  }
  const int warps = scratch.groups < kMostWarps ? scratch.groups : kMostWarps;
  return launch(align_kernel<X>, dim3(unsigned(p.shape.N)), dim3(unsigned(warps * kLanes)), 0, stream, p, scratch);
}

cudaError_t launch_typed(const ForcedAlignCudaParams& p) {
  switch (p.shape.dtype) {
#ifndef FASTCTC_ONLY_FLOAT32
    case DType::float16:
      return launch_kernels<__half>(p);
    case DType::bfloat16:
      return launch_kernels<__nv_bfloat16>(p);
    case DType::float64:
      return launch_kernels<double>(p);
#endif
    case DType::float32:
      return launch_kernels<float>(p);
    default:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int64_t forced_align_cuda_scratch_bytes(const ForcedAlignCudaShape& shape) { return lay_out(shape, nullptr).bytes; }

int forced_align_cuda(const ForcedAlignCudaParams& params) {
  const cuda::DeviceScope scope(params.device);
  return int(scope.error() != cudaSuccess ? scope.error() : launch_typed(params));
}

}  // namespace fastctc
