// Prefix beam search, one frame at a time. Included once by each SIMD target's translation unit.
//
// A prefix in the beam has a slot. Its mass comes from itself (blank, or its last token again) and, where its parent is
// in the beam, from there: it pulls that by the parent's slot, so merging needs no search. Then new prefixes compete
// for the slots: only tokens that could beat the worst prefix of a full beam are looked at, survivors stay where they
// are, and new ones take the slots that are freed.
#pragma once

#include "beam_search_extend.h"

namespace {

using fastctc::BeamHypothesis;

template <class S, class X, bool fused>
struct BeamRun : BeamExtensions<S, X, fused> {
  using Frame = BeamExtensions<S, X, fused>;
  using F = typename S::F;
  using I = typename S::I;
  using Scalar = typename S::Scalar;
  using Int = typename S::Int;
  using Sets = LaneSets<S>;
  static constexpr int W = S::W;
  using Frame::at_least_tiny;
  using Frame::best;
  using Frame::blank_mass;
  using Frame::bonus;
  using Frame::candidate;
  using Frame::children;
  using Frame::choose_tokens;
  using Frame::chosen;
  using Frame::clear;
  using Frame::columns;
  using Frame::entering_bonus;
  using Frame::entering_factor;
  using Frame::entering_state;
  using Frame::extend;
  using Frame::factor;
  using Frame::final_score;
  using Frame::fresh;
  using Frame::fusion_state;
  using Frame::keep_share;
  using Frame::largest;
  using Frame::last;
  using Frame::least_score;
  using Frame::made_from;
  using Frame::mass;
  using Frame::next;
  using Frame::node;
  using Frame::now;
  using Frame::only_blank;
  using Frame::options;
  using Frame::order;
  using Frame::outlook;
  using Frame::parent;
  using Frame::parent_slot;
  using Frame::prices;
  using Frame::reach;
  using Frame::read;
  using Frame::repeats;
  using Frame::row_users;
  using Frame::scale;
  using Frame::scaled_probability;
  using Frame::score;
  using Frame::scores;
  using Frame::source;
  using Frame::state;
  using Frame::state_of;
  using Frame::stay;
  using Frame::token;
  using Frame::token_mass;
  using Frame::top;
  using Frame::top_probability;
  using Frame::total;
  using Frame::vacated;
  using Frame::vectors;
  using Frame::width;
  using Frame::worst;

  using Frame::Frame;

  int64_t advance(const X* rows, int64_t stride, int64_t frames) {
    Scalar base[W], sum[W], tail[W];
    for (int64_t t = 0; t < frames; ++t) {
      const int64_t k = t % W;
      if (k == 0) {
        const X* block = rows + t * stride;
        const int64_t count = at_most(W, frames - t);
        if (options.from_logits)
          softmax_sums<S>(block, stride, count, options.C, base, sum, tail);
        else
          row_maxima<false, S>(block, stride, count, options.C, base);
      }
      if (state.trie.count + options.beam_size > state.trie.capacity) {
        collect_nodes();
        // one that is mostly alive would soon be collected again
        if (2 * (state.trie.count + options.beam_size) > state.trie.capacity) return t;
      }
      read(rows + t * stride, base[k]);
      if (state.largest) state.largest[t] = (double)top;
      const double normaliser = options.from_logits ? precise_sum(base[k], sum[k], tail[k]) : 1;
      if (state.log_normalisers) state.log_normalisers[t] = (double)top + FASTCTC_MATH(log)(normaliser);
      take(normaliser);
      if constexpr (fused)
        if (state.excessive_bonus > 0) return t;
    }
    return frames;
  }

  void collect_nodes() {
    collect(state.trie);
    for (int64_t i = 0; i < state.slots; ++i) {
      node[i] = state.trie.moved[node[i]];
      parent[i] = state.trie.parent[node[i]];
    }
  }

  void measure() {
    F high = S::set1(0), far = S::set1(0);
    for (int64_t v = 0; v < vectors(); ++v) {
      const F x = S::load(total(now()) + v * W);
      high = S::at_least(x, high);
      if constexpr (fused) far = S::at_least(x * S::load(outlook + v * W), far);
    }
    largest = S::largest(high);
    reach = fused ? S::largest(far) : largest;
  }

  void take(double normaliser) {
    measure();
    // no mass is left, or a frame says nothing: no prefix has a probability from here on
    if (!(largest > 0) || top - top != 0 || normaliser != normaliser) {
      state.slots = 0;
      return;
    }
    const int64_t exponent = exponent_of(largest);
    scale = (Scalar)two_to(-exponent);
    state.exponent += exponent;
    if constexpr (fused)
      if (exponent > kMostRaised) shrink();
    state.log_scale += options.from_logits ? -FASTCTC_MATH(log)(normaliser) : (double)top;
    top_probability = options.from_logits ? 1 / normaliser : FASTCTC_MATH(exp)((double)top);
    const Scalar blank_y = scaled_probability(S::set1(scores[options.blank]))[0];
    if (options.blank_skip_threshold < 1 && blank_y / (double)scale * top_probability > options.blank_skip_threshold) {
      only_blank(blank_y);
    } else {
      stay(blank_y);
      choose_tokens();
      extend();
      settle_beam();
    }
  }

  // Scales the masses themselves.
  void shrink() {
    Scalar* const masses[] = {total(now()), blank_mass(now()), token_mass[now()]};
    for (Scalar* field : masses)
      for (int64_t v = 0; v < vectors(); ++v) S::store(field + v * W, S::load(field + v * W) * S::set1(scale));
    reach *= scale;
    scale = 1;
  }

  // Decides who is in the beam after the frame.
  void settle_beam() {
    state.current = next();
    double share = keep_share * best;
    if (fresh == 0 && worst >= at_least_tiny(share)) return;
    for (int64_t i = 0; i < fresh; ++i) {
      const Scalar s = score[state.slots + i];
      if (keep_share * s > share) share = keep_share * s;
    }
    const Scalar by_rank = least_score(), least = at_least_tiny(by_rank > share ? by_rank : share);
    const F q = S::set1(least);
    int64_t entering = 0, vacant = 0;
    for (int64_t i = 0; i < state.slots; i += W)
      for (uint32_t bits = ~Sets::not_below(S::load(score + i), q) & Sets::first(state.slots - i); bits;
           bits &= bits - 1)
        vacated[vacant++] = (Int)(i + lowest_bit(bits));
    for (int64_t i = 0; i < fresh; i += W)
      for (uint32_t bits = Sets::not_below(S::load(score + state.slots + i), q) & Sets::first(fresh - i); bits;
           bits &= bits - 1)
        chosen[entering++] = (Int)(i + lowest_bit(bits));
    if (entering == 0 && vacant == 0) return;
    enter(entering, vacant);
  }

  void enter(int64_t entering, int64_t vacant) {
    // parents first: their slots may be given away
    for (int64_t i = 0; i < entering; ++i) {
      const Int from = made_from[chosen[i]];
      const int64_t slot = from % width;
      order[i] = node[slot];
      if constexpr (fused) {
        int32_t* const after = fusion_state(entering_state, i);
        const int32_t c = (int32_t)token[from / width];
        const double gain = options.fusion->extend(options.fusion->self, state_of(slot), c, after);
        if (gain > BeamLimits<Scalar>::kHighestBonus) state.excessive_bonus = gain;
        entering_bonus[i] = bonus[slot] + gain;
        entering_factor[i] = (Scalar)gain;
      }
    }
    if constexpr (fused)
      for (int64_t i = 0; i < entering; i += W)
        S::store(entering_factor + i, exp_value<S>(S::load(entering_factor + i)));
    const int64_t before = state.slots;
    for (int64_t i = 0; i < vacant; ++i) {
      state.trie.slot[node[vacated[i]]] = -1;
      if constexpr (fused) {
        --row_users[prices[vacated[i]] / columns];
        if (this->rows_are_whole()) leave_parent(vacated[i]);
      }
    }
    for (int64_t i = 0; i < entering; ++i) {
      const int64_t slot = i < vacant ? vacated[i] : state.slots++;
      fill(slot, i, score[before + chosen[i]]);
    }
    for (int64_t i = vacant; i-- > entering;) close_gap(vacated[i]);
    find_parents();
  }

  void fill(int64_t slot, int64_t i, Scalar mass_of_it) {
    BeamTrie& trie = state.trie;
    const int32_t of = (int32_t)order[i], with = (int32_t)token[made_from[chosen[i]] / width];
    const int32_t entered = child_node(trie, of, with);
    trie.slot[entered] = (int32_t)slot;
    node[slot] = entered;
    parent[slot] = of;
    last[slot] = with;
    repeats[slot] = trie.token[of] == with ? (Int)width : 0;
    total(now())[slot] = token_mass[now()][slot] = mass_of_it;
    blank_mass(now())[slot] = 0;
    if constexpr (fused) {
      factor[slot] = entering_factor[i];
      bonus[slot] = entering_bonus[i];
      this->use_row(slot, this->find_row(fusion_state(entering_state, i)));
      if (this->rows_are_whole()) join_family(slot);
    }
  }

  void leave_parent(int64_t slot) {
    if (parent_slot[slot] >= 0) children[parent_slot[slot]] &= ~((uint64_t)1 << last[slot]);
  }
  // Of what is in the beam. Children are there before their parent where that has come back.
  void join_family(int64_t slot) {
    const BeamTrie& trie = state.trie;
    const int32_t above = trie.slot[parent[slot]];
    if (above >= 0) children[above] |= (uint64_t)1 << last[slot];
    children[slot] = 0;
    for (int32_t child = trie.first_child[node[slot]]; child != kNoNode; child = trie.next_sibling[child])
      if (trie.slot[child] >= 0) children[slot] |= (uint64_t)1 << trie.token[child];
  }

  // The last slot moves into one that has become free.
  void close_gap(int64_t slot) {
    const int64_t end = --state.slots;
    if (slot != end) {
      Scalar* const masses[] = {total(now()), blank_mass(now()), token_mass[now()]};
      for (Scalar* field : masses) field[slot] = field[end];
      Int* const fields[] = {last, node, parent, repeats};
      for (Int* field : fields) field[slot] = field[end];
      state.trie.slot[node[slot]] = (int32_t)slot;
      if constexpr (fused) {
        factor[slot] = factor[end];
        bonus[slot] = bonus[end];
        outlook[slot] = outlook[end];
        prices[slot] = prices[end];
        children[slot] = children[end];
      }
    }
    clear(end);
  }

  void find_parents() {
    const I nothing = S::set1i((Int)(2 * width));
    for (int64_t v = 0; v < vectors(); ++v) {
      const int64_t i = v * W;
      const I slot = Sets::gather(state.trie.slot, S::load(parent + i));
      S::store(parent_slot + i, slot);
      S::store(source + i, S::select(S::less(slot, S::set1i(0)), nothing, slot + S::load(repeats + i)));
    }
  }

  int64_t write_best(int64_t count, BeamHypothesis* out) {
    const double scale_of_all = (double)state.exponent * 0.69314718055994530942 + state.log_scale;
    int64_t n = 0;
    for (int64_t i = 0; i < state.slots; ++i) {
      if (!(total(now())[i] > 0)) continue;
      final_score[i] = FASTCTC_MATH(log)((double)total(now())[i]) + scale_of_all + ending(i);
      if (final_score[i] > -infinity()) order[n++] = (Int)i;
    }
    const auto before = [&](Int a, Int b) {
      if (final_score[a] != final_score[b]) return final_score[a] > final_score[b];
      return comes_first(state.trie, candidate(a), candidate(b));
    };
    count = at_most(count, n);
    bring_first(order, n, count, before);
    sort(order, count, before);
    for (int64_t i = 0; i < count; ++i) {
      const Int slot = order[i];
      out[i] = {(int32_t)node[slot], final_score[slot], fused ? bonus[slot] + ending(slot) : 0};
    }
    return count;
  }

  double ending(int64_t slot) const {
    if constexpr (fused) return options.fusion->finish(options.fusion->self, state_of(slot));
    return 0;
  }
};

template <class S, class X, class Body>
void call_with_beam(BeamState& state, Body body) {
  if (state.options.fusion) {
    BeamRun<S, X, true> run(state);
    body(run);
  } else {
    BeamRun<S, X, false> run(state);
    body(run);
  }
}

template <class S, class X>
void start_typed(S*, X*, BeamState& state) {
  call_with_beam<S, X>(state, [](auto& run) { run.start(); });
}
template <class SF, class SD>
void start_beam(BeamState& state) {
  with_types<SF, SD>(state.dtype, [&](auto* vectors, auto* storage) { start_typed(vectors, storage, state); });
}

template <class S, class X>
int64_t advance_typed(S*, X*, BeamState& state, const void* scores, int64_t stride, int64_t frames) {
  int64_t taken = 0;
  call_with_beam<S, X>(state, [&](auto& run) { taken = run.advance(static_cast<const X*>(scores), stride, frames); });
  return taken;
}
template <class SF, class SD>
int64_t advance_beam(BeamState& state, const void* scores, int64_t stride, int64_t frames) {
  int64_t taken = 0;
  with_types<SF, SD>(state.dtype, [&](auto* vectors, auto* storage) {
    taken = advance_typed(vectors, storage, state, scores, stride, frames);
  });
  return taken;
}

template <class S, class X>
int64_t best_typed(S*, X*, BeamState& state, int64_t count, BeamHypothesis* out) {
  int64_t found = 0;
  call_with_beam<S, X>(state, [&](auto& run) { found = run.write_best(count, out); });
  return found;
}
template <class SF, class SD>
int64_t best_of_beam(BeamState& state, int64_t count, BeamHypothesis* out) {
  int64_t found = 0;
  with_types<SF, SD>(state.dtype,
                     [&](auto* vectors, auto* storage) { found = best_typed(vectors, storage, state, count, out); });
  return found;
}

template <class S>
int64_t measure(const BeamState& state) {
  BeamLayout<S> layout;
  layout.lay_out(state.options, nullptr);
  return layout.used;
}
template <class SF, class SD>
int64_t beam_bytes(const BeamState& state) {
  return state.dtype == 3 ? measure<SD>(state) : measure<SF>(state);
}

}  // namespace

#define FASTCTC_DEFINE_BEAM_KERNELS(name, float_lanes)                       \
  const fastctc::BeamKernels fastctc::name = {                               \
      beam_bytes<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,   \
      start_beam<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>,   \
      advance_beam<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>, \
      best_of_beam<Simd<float, float_lanes>, Simd<double, float_lanes / 2>>, \
  };
