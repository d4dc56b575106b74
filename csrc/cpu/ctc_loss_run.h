// One row of the batch from scores to loss and gradient. Included once by each SIMD target's translation unit.
#pragma once

#include "ctc_loss_rows.h"

namespace {

template <class S, class X>
void fill_gradient(const CtcUtterance& u, double value) {
  X filler;
  from_scalar((typename S::Scalar)value, filler);
  for (int64_t t = 0; t < u.T; ++t) {
    X* out = static_cast<X*>(u.grad) + t * u.grad_stride;
    for (int64_t c = 0; c < u.C; ++c) out[c] = filler;
  }
}

template <class S, class X>
void fill_impossible(const CtcUtterance& u) {
  fill_gradient<S, X>(u, u.zero_infinity ? 0.0 : not_a_number());
}

template <class S, class X>
struct Run {
  CtcUtterance& u;
  Lattice<S> lattice;
  double log_normaliser = 0;  // what the emissions, relative to each frame's maximum, leave out of the loss

  int64_t frames_of(int64_t block) const { return at_most(kBlock, u.T - block * kBlock); }

  // Scores of one block to row statistics and emissions. False: a score that matters is NaN or +inf (or a frame of
  // logits has nothing but -inf), which must not get into the lattice's exponents.
  bool read(int64_t k) {
    const int64_t frames = frames_of(k), after = k * kBlock + frames;
    prefetch_rows<X, false>(static_cast<const X*>(u.scores) + after * u.scores_stride, u.scores_stride,
                            at_most(kBlock, u.T - after), u.C);
    log_normaliser += u.from_logits ? softmax_statistics<S, X>(lattice, u, k * kBlock, frames)
                                    : log_probability_statistics<S, X>(lattice, u, k * kBlock, frames);
    const bool numbers = emit<S, X>(lattice, u, k, lattice.band(u, k), frames);
    return numbers && log_normaliser == log_normaliser;
  }

  // Alphas of the blocks [first_block, end_block), whose emissions are made again where they have not been kept.
  void alphas(int64_t first_block, int64_t end_block) {
    for (int64_t k = first_block; k < end_block; ++k) {
      if (lattice.emission_blocks == 1) emit<S, X>(lattice, u, k, lattice.band(u, k), frames_of(k));
      alpha(k, (k - first_block) * kBlock * lattice.width, true);
    }
  }

  void alpha(int64_t k, int64_t kept_at, bool keep) {
    const auto band = lattice.band(u, k);
    if (u.grad) lattice.block_bits[k] = lattice.alpha_bits;
    with_tables([&](auto tables) {
      if (keep)
        lattice.template alpha_block<tables.n, true>(k, blank_at(), band, frames_of(k), lattice.kept_m + kept_at,
                                                     lattice.kept_e + kept_at);
      else
        lattice.template alpha_block<tables.n, false>(k, blank_at(), band, frames_of(k), nullptr, nullptr);
    });
  }

  // where a frame's emissions hold the blank's
  int64_t blank_at() const { return lattice.table_vectors ? u.blank : 0; }

  template <int count>
  struct Tables {
    static constexpr int n = count;
  };
  template <class Body>
  void with_tables(Body body) {
    if constexpr (S::kTableVectors > 0) {
      switch (lattice.table_vectors) {
        case 1:
          return body(Tables<1>{});
        case 2:
          return body(Tables<2>{});
        case 4:
          return body(Tables<4>{});
        case 8:
          if constexpr (S::kTableVectors >= 8) return body(Tables<8>{});
      }
    }
    body(Tables<0>{});
  }

  void save(int64_t segment) {
    FASTCTC_COPY(lattice.saved_m + segment * 2 * lattice.width, lattice.alpha_m,
                 2 * lattice.width * sizeof *lattice.alpha_m);
    FASTCTC_COPY(lattice.saved_e + segment * 2 * lattice.width, lattice.alpha_e,
                 2 * lattice.width * sizeof *lattice.alpha_e);
  }
  void restore(int64_t segment, int64_t first_block) {
    FASTCTC_COPY(lattice.alpha_m, lattice.saved_m + segment * 2 * lattice.width,
                 2 * lattice.width * sizeof *lattice.alpha_m);
    FASTCTC_COPY(lattice.alpha_e, lattice.saved_e + segment * 2 * lattice.width,
                 2 * lattice.width * sizeof *lattice.alpha_e);
    lattice.alpha_bits = lattice.block_bits[first_block];
  }

  void run() {
    lattice.lay_out(u, u.workspace);
    lattice.start(u);
    const int64_t segments = lattice.segments(), stride = lattice.segment_blocks;
    for (int64_t k = 0; k < lattice.blocks; ++k) {
      const int64_t segment = k / stride;
      if (u.grad && k % stride == 0 && segment < segments - 1) save(segment);
      if (!read(k)) {
        u.loss = not_a_number();
        if (u.grad) fill_gradient<S, X>(u, u.loss);
        return;
      }
      alpha(k, k % stride * kBlock * lattice.width, u.grad && segment == segments - 1);
    }
    double mantissa;
    int64_t exponent;
    const double log_probability = lattice.log_probability(u, &mantissa, &exponent);
    u.loss = log_normaliser - log_probability;
    if (!u.grad) return;
    if (u.loss == infinity()) return fill_impossible<S, X>(u);
    lattice.start_beta(u, mantissa);
    for (int64_t s = segments - 1; s >= 0; --s) {
      const int64_t first = s * stride, end = at_most(lattice.blocks, first + stride);
      if (s != segments - 1) {
        restore(s, first);
        alphas(first, end);
      }
      for (int64_t k = end - 1; k >= first; --k) backward(k, (k - first) * kBlock * lattice.width, exponent);
    }
    if (u.stream_grad) finish_streaming();
  }

  void backward(int64_t k, int64_t kept_at, int64_t exponent) {
    const int64_t t0 = k * kBlock, frames = frames_of(k);
    const auto band = lattice.band(u, k);
    prefetch_rows<X, true>(static_cast<X*>(u.grad) + t0 * u.grad_stride, u.grad_stride, frames, u.C);
    if (lattice.emission_blocks == 1) emit<S, X>(lattice, u, k, band, frames);
    with_tables([&](auto tables) {
      lattice.template beta_block<tables.n>(k, blank_at(), band, frames, lattice.kept_m + kept_at,
                                            lattice.kept_e + kept_at,
                                            lattice.block_bits[k] + lattice.beta_bits - exponent);
    });
    if (lattice.dense)
      dense_gradient<S, X>(lattice, u, band, t0, frames);
    else
      sparse_gradient<S, X>(lattice, u, band, t0, frames);
  }
};

// SF and SD: the target's vectors of float and of double. dtype as in fastctc::DType.
template <class SF, class SD>
int64_t workspace_bytes(int dtype, const CtcUtterance& u) {
  if (dtype == 3) return Lattice<SD>{}.lay_out(u, nullptr);
  return Lattice<SF>{}.lay_out(u, nullptr);
}

template <class S, class X>
void run_typed(S*, X*, CtcUtterance& u) {
  Run<S, X>{u, {}}.run();
}
template <class S, class X>
void fill_typed(S*, X*, const CtcUtterance& u) {
  fill_impossible<S, X>(u);
}

template <class SF, class SD>
void run_any(int dtype, CtcUtterance& u) {
  with_types<SF, SD>(dtype, [&](auto* vectors, auto* storage) { run_typed(vectors, storage, u); });
}

template <class SF, class SD>
void fill_any(int dtype, const CtcUtterance& u) {
  with_types<SF, SD>(dtype, [&](auto* vectors, auto* storage) { fill_typed(vectors, storage, u); });
}

}  // namespace

#define FASTCTC_DEFINE_CTC_LOSS_KERNELS(name, float_lanes)                      \
  const fastctc::CtcLossKernels fastctc::name = {                               \
      workspace_bytes<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>, \
      run_any<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,         \
      fill_any<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,        \
  };
