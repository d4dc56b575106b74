// Prefix beam search, one frame at a time. Included once by each SIMD target's translation unit.
//
// A prefix in the beam has a slot. Its mass comes from itself (blank, or its last token again) and, where its parent is
// in the beam, from there: it pulls that by the parent's slot, so merging needs no search. Then new prefixes compete
// for the slots: only tokens that could beat the worst prefix of a full beam are looked at, survivors stay where they
// are, and new ones take the slots that are freed.
#pragma once

#include "beam_search_layout.h"
#include "beam_search_select.h"
#include "beam_search_trie.h"
#include "simd/rows.h"

namespace {

using fastctc::BeamHypothesis;

template <class Scalar>
struct BeamLimits;
template <>
struct BeamLimits<float> {
  static constexpr float kTiny = 1.17549435e-38f;  // the smallest normal number: what is below has no mass
  static constexpr double kLowest = -87.4;         // and its logarithm, rounded down
};
template <>
struct BeamLimits<double> {
  static constexpr double kTiny = 2.2250738585072014e-308;
  static constexpr double kLowest = -708.4;
};

// x = m * 2^exponent with m in [0.5, 1); x is a positive normal number
FASTCTC_INLINE int64_t exponent_of(double x) {
  uint64_t bits;
  FASTCTC_COPY(&bits, &x, sizeof bits);
  return (int64_t)(bits >> 52) - 1022;
}
FASTCTC_INLINE double two_to(int64_t n) { return double_of_bits((uint64_t)(n + 1023) << 52); }

template <class S, class X, bool fused>
struct BeamRun : BeamLayout<S> {
  using Layout = BeamLayout<S>;
  using F = typename S::F;
  using I = typename S::I;
  using Scalar = typename S::Scalar;
  using Int = typename S::Int;
  using Sets = LaneSets<S>;
  static constexpr int W = S::W;
  using Layout::bonus;
  using Layout::child_in_beam;
  using Layout::chosen;
  using Layout::entering_bonus;
  using Layout::entering_factor;
  using Layout::entering_fusion;
  using Layout::factor;
  using Layout::final_score;
  using Layout::fusion;
  using Layout::last;
  using Layout::made_from;
  using Layout::mass;
  using Layout::node;
  using Layout::order;
  using Layout::parent;
  using Layout::parent_slot;
  using Layout::repeats;
  using Layout::room;
  using Layout::score;
  using Layout::scratch;
  using Layout::source;
  using Layout::token;
  using Layout::token_mass;
  using Layout::token_rank;
  using Layout::token_y;
  using Layout::vacated;
  using Layout::width;

  BeamState& state;
  const BeamOptions& options;
  const double keep_share;      // e^-beam_threshold
  const double largest_factor;  // of one extension

  // Of the frame at hand.
  const Scalar* scores;    // C of them
  Scalar top;              // the best of them,
  double top_probability;  // and its probability
  Scalar scale;            // 2^-exponent of the largest mass
  Scalar largest;          // the largest mass, unscaled
  Scalar worst, best;      // of the slots' prefixes after the frame
  Scalar bound;            // new prefixes below it cannot enter
  int64_t tokens, fresh;   // classes that may make new prefixes; new prefixes

  explicit BeamRun(BeamState& s)
      : state(s),
        options(s.options),
        keep_share(FASTCTC_MATH(exp)(-s.options.beam_threshold)),
        largest_factor(fused ? FASTCTC_MATH(exp)(s.options.fusion->largest_bonus) : 1.0) {
    this->lay_out(s.options, s.workspace);
  }

  Scalar* total(int set) const { return mass[set]; }
  Scalar* blank_mass(int set) const { return mass[set] + width; }
  int now() const { return state.current; }
  int next() const { return 1 - state.current; }
  int32_t* fusion_state(int32_t* states, int64_t i) const { return states + i * options.fusion->state_ints; }
  Scalar at_least_tiny(double x) const {
    return x > BeamLimits<Scalar>::kTiny ? (Scalar)x : (Scalar)BeamLimits<Scalar>::kTiny;
  }

  void start() {
    start_trie(state.trie);
    for (int set = 0; set < 2; ++set) {
      for (int64_t i = 0; i < 2 * width + W; ++i) mass[set][i] = 0;
      for (int64_t i = 0; i < width; ++i) token_mass[set][i] = 0;
    }
    for (int64_t i = 0; i < width; ++i) clear(i);
    for (int64_t c = 0; c < options.C; ++c) token_rank[c] = -1;
    state.current = 0;
    state.exponent = 0;
    state.log_scale = 0;
    state.slots = 1;
    node[0] = kEmptyPrefix;
    state.trie.slot[kEmptyPrefix] = 0;
    total(0)[0] = blank_mass(0)[0] = 1;
    if constexpr (fused) {
      options.fusion->start(options.fusion->self, fusion);
      bonus[0] = 0;
    }
  }

  // A slot without a prefix: its lanes compute along, and come to nothing.
  void clear(int64_t i) {
    for (int set = 0; set < 2; ++set) total(set)[i] = blank_mass(set)[i] = token_mass[set][i] = 0;
    last[i] = 0;
    node[i] = parent[i] = kNoNode;
    parent_slot[i] = -1;
    repeats[i] = 0;
    source[i] = (Int)(2 * width);
    if constexpr (fused) factor[i] = 1;
  }

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
      const double normaliser = options.from_logits ? precise_sum(base[k], sum[k], tail[k]) : 1;
      if (state.log_normalisers) state.log_normalisers[t] = (double)top + FASTCTC_MATH(log)(normaliser);
      take(normaliser);
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

  void read(const X* stored, Scalar base) {
    top = base;
    if constexpr (sizeof(X) == sizeof(Scalar)) {
      scores = stored;
    } else {
      scores = this->row;
      for_each_vector<S>(stored, options.C, [&](int64_t c, F x, int64_t) { S::store(this->row + c, x); });
    }
  }

  void take(double normaliser) {
    largest = 0;
    for (int64_t v = 0; v < vectors(); ++v) {
      const Scalar x = S::largest(S::load(total(now()) + v * W));
      largest = largest < x ? x : largest;
    }
    // no mass is left, or a frame says nothing: no prefix has a probability from here on
    if (!(largest > 0) || top - top != 0 || normaliser != normaliser) {
      state.slots = 0;
      return;
    }
    const int64_t exponent = exponent_of(largest);
    scale = (Scalar)two_to(-exponent);
    state.exponent += exponent;
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

  int64_t vectors() const { return (state.slots + W - 1) / W; }

  // e^(score - top) * scale; 0 for NaN
  F scaled_probability(F x) const {
    const F lowest = S::set1((Scalar)(2 * BeamLimits<Scalar>::kLowest)), z = x - S::set1(top);
    return exp_value<S>(S::select(S::less(lowest, z), z, lowest)) * S::set1(scale);
  }

  void only_blank(Scalar blank_y) {
    const F y = S::set1(blank_y);
    for (int64_t v = 0; v < vectors(); ++v) {
      const int64_t i = v * W;
      const F x = S::load(total(now()) + i) * y;
      S::store(total(next()) + i, x);
      S::store(blank_mass(next()) + i, x);
      S::store(token_mass[next()] + i, S::set1(0));
    }
    state.current = next();
  }

  // Masses after the frame of the prefixes that are in the beam.
  void stay(Scalar blank_y) {
    const F y_blank = S::set1(blank_y);
    F high = S::set1(0), low = S::set1((Scalar)infinity());
    for (int64_t v = 0; v < vectors(); ++v) {
      const int64_t i = v * W;
      const F y = scaled_probability(Sets::gather(scores, S::load(last + i)));
      F pulled = Sets::gather(mass[now()], S::load(source + i));
      if constexpr (fused) pulled = pulled * S::load(factor + i);
      const F ends_in_token = (S::load(token_mass[now()] + i) + pulled) * y;
      const F ends_in_blank = S::load(total(now()) + i) * y_blank;
      const F both = ends_in_token + ends_in_blank;
      S::store(token_mass[next()] + i, ends_in_token);
      S::store(blank_mass(next()) + i, ends_in_blank);
      S::store(total(next()) + i, both);
      S::store(score + i, both);
      high = S::at_least(both, high);
      const int64_t left = state.slots - i;
      low = S::at_most(left >= W ? both : Sets::pick(Sets::first(left), both, low), low);
    }
    best = S::largest(high);
    worst = -S::largest(S::set1(0) - low);
  }

  // Classes that may make a new prefix which enters, the blank left out, and their scaled probabilities.
  void choose_tokens() {
    const bool full = state.slots == options.beam_size;
    const double far = best * keep_share;
    bound = at_least_tiny(full && worst > far ? worst : far);
    double cut = FASTCTC_MATH(log)((double)bound / ((double)largest * scale * largest_factor));
    cut -= 1e-5 * (1 + FASTCTC_MATH(fabs)(cut));  // rounding must not lose one
    tokens = 0;
    if (cut > 0) return;
    if (cut < BeamLimits<Scalar>::kLowest) cut = BeamLimits<Scalar>::kLowest;
    find_tokens((Scalar)cut);
    const int64_t limit = Layout::token_limit(options);
    if (tokens > limit) keep_best_tokens(limit);
    if (options.top_p < 1) keep_nucleus();
    for (int64_t k = 0; k < tokens; ++k)
      if (token[k] == options.blank) {
        --tokens;
        for (; k < tokens; ++k) token[k] = token[k + 1], token_y[k] = token_y[k + 1];
      }
    for (int64_t k = 0; k < tokens; k += W) S::store(token_y + k, exp_value<S>(S::load(token_y + k)) * S::set1(scale));
  }

  // Classes whose score is at least `cut` above the frame's best, in order, and those differences.
  void find_tokens(Scalar cut) {
    constexpr int64_t kGroup = 4;
    const F least = S::set1(cut), high = S::set1(top);
    const auto note = [&](F z, uint32_t bits, int64_t c) {
      Sets::pack(token_y + tokens, z, bits);
      tokens += Sets::pack(token + tokens, Sets::count_from((Int)c), bits);
    };
    int64_t c = 0;
    for (; c + kGroup * W <= options.C; c += kGroup * W) {
      F z[kGroup];
      uint32_t bits[kGroup], any = 0;
      for (int g = 0; g < kGroup; ++g) {
        z[g] = S::load(scores + c + g * W) - high;
        any |= bits[g] = Sets::not_below(z[g], least);
      }
      if (!any) continue;
      for (int g = 0; g < kGroup; ++g)
        if (bits[g]) note(z[g], bits[g], c + g * W);
    }
    for (; c < options.C; c += W) {
      const int64_t left = options.C - c;
      const F x = left >= W ? S::load(scores + c) : load_part<S>(scores + c, left, -(Scalar)infinity());
      const F z = x - high;
      const uint32_t bits = Sets::not_below(z, least);
      if (bits) note(z, bits, c);
    }
  }

  // Of equal ones the lower classes stay.
  void keep_best_tokens(int64_t limit) {
    const Scalar least = kth_largest<S>(token_y, tokens, limit, scratch);
    int64_t equal = limit, kept = 0;
    for (int64_t k = 0; k < tokens; ++k) equal -= token_y[k] > least;
    for (int64_t k = 0; k < tokens; ++k) {
      if (token_y[k] < least || (token_y[k] == least && equal-- <= 0)) continue;
      token[kept] = token[k];
      token_y[kept++] = token_y[k];
    }
    tokens = kept;
  }

  void keep_nucleus() {
    for (int64_t k = 0; k < tokens; ++k) order[k] = (Int)k;
    sort(order, tokens, [&](Int a, Int b) { return token_y[a] != token_y[b] ? token_y[a] > token_y[b] : a < b; });
    double reached = 0;
    int64_t kept = 0;
    while (kept < tokens && reached < options.top_p)
      reached += top_probability * FASTCTC_MATH(exp)((double)token_y[order[kept++]]);
    for (int64_t k = 0; k < kept; ++k) scratch[k] = token_y[order[k]], order[k] = token[order[k]];
    for (int64_t k = 0; k < kept; ++k) token[k] = order[k], token_y[k] = scratch[k];
    tokens = kept;
  }

  // For each token a bit per slot whose prefix with that token is in the beam already.
  void mark_children() {
    constexpr int64_t kFew = 6;
    const int64_t n = vectors();
    for (int64_t i = 0; i < tokens * n; ++i) child_in_beam[i] = 0;
    const auto mark = [&](int64_t k, int64_t child) {
      const Int slot = parent_slot[child];
      if (slot >= 0) child_in_beam[k * n + slot / W] |= (uint16_t)(1u << slot % W);
    };
    if (tokens <= kFew) {
      for (int64_t k = 0; k < tokens; ++k) {
        const I c = S::set1i(token[k]);
        for (int64_t v = 0; v < n; ++v)
          for (uint32_t bits = Sets::equal(S::load(last + v * W), c); bits; bits &= bits - 1)
            mark(k, v * W + lowest_bit(bits));
      }
      return;
    }
    for (int64_t k = 0; k < tokens; ++k) token_rank[token[k]] = (Int)k;
    for (int64_t i = 0; i < state.slots; ++i)
      if (token_rank[last[i]] >= 0) mark(token_rank[last[i]], i);
    for (int64_t k = 0; k < tokens; ++k) token_rank[token[k]] = -1;
  }

  // Scores of the prefixes that one of the tokens makes and the beam does not hold.
  void extend() {
    fresh = 0;
    if (tokens == 0) return;
    mark_children();
    const int64_t n = vectors();
    Scalar* fresh_score = score + state.slots;
    for (int64_t k = 0; k < tokens; ++k) {
      const F y = S::set1(token_y[k]), most = S::set1((Scalar)(token_y[k] * largest_factor));
      if (largest * token_y[k] * largest_factor < bound) continue;
      const I c = S::set1i(token[k]);
      for (int64_t v = 0; v < n; ++v) {
        const F from_all = S::load(total(now()) + v * W);
        const uint32_t same = Sets::equal(S::load(last + v * W), c);
        const F from = same ? Sets::pick(same, S::load(blank_mass(now()) + v * W), from_all) : from_all;
        const F product = from * y;
        const uint32_t bits =
            Sets::not_below(fused ? from * most : product, S::set1(bound)) & ~child_in_beam[k * n + v];
        if (!bits) continue;
        if constexpr (fused) {
          for (uint32_t rest = bits; rest; rest &= rest - 1) offer(k, v * W + lowest_bit(rest), product);
        } else {
          Sets::pack(fresh_score + fresh, product, bits);
          fresh += Sets::pack(made_from + fresh, Sets::count_from((Int)(k * width + v * W)), bits);
        }
        if (fresh + W > room) tighten();
      }
    }
  }

  void offer(int64_t k, int64_t slot, F product) {
    int32_t after[BeamFusion::kMaxStateInts];
    double gain;
    const BeamFusion& f = *options.fusion;
    if (!f.extend(f.self, fusion_state(fusion, slot), (int32_t)token[k], after, &gain)) return;
    const Scalar s = product[slot % W] * (Scalar)FASTCTC_MATH(exp)(gain);
    if (!(s >= bound)) return;
    score[state.slots + fresh] = s;
    made_from[fresh++] = (Int)(k * width + slot);
  }

  PrefixOf candidate(int64_t i) const {
    if (i < state.slots) return {(int32_t)node[i], -1};
    const Int from = made_from[i - state.slots];
    return {(int32_t)node[from % width], (int32_t)token[from / width]};
  }

  // The least score that stays in the beam; where equal ones are too many, the losers' scores become -1.
  Scalar least_score() {
    const int64_t n = state.slots + fresh, B = options.beam_size;
    Scalar least = 0;
    if (n > B) {
      least = kth_largest<S>(score, n, B, scratch);
      int64_t greater = 0, equal = 0;
      for (int64_t i = 0; i < n; i += W) {
        const uint32_t there = Sets::first(n - i);
        const F x = S::load(score + i), q = S::set1(least);
        greater += count_bits(Sets::above(x, q) & there);
        equal += count_bits(Sets::not_below(x, q) & there);
      }
      equal -= greater;
      if (greater + equal > B && least > 0) break_ties(least, B - greater);
    }
    return least;
  }

  void break_ties(Scalar least, int64_t winners) {
    int64_t tied = 0;
    for (int64_t i = 0; i < state.slots + fresh; ++i)
      if (score[i] == least) order[tied++] = (Int)i;
    bring_first(order, tied, winners,
                [&](Int a, Int b) { return comes_first(state.trie, candidate(a), candidate(b)); });
    for (int64_t i = winners; i < tied; ++i) score[order[i]] = -1;
  }

  // Where candidates run out of room: those that cannot enter any more go.
  void tighten() {
    const Scalar least = at_least_tiny(least_score());
    Scalar* fresh_score = score + state.slots;
    int64_t kept = 0;
    for (int64_t i = 0; i < fresh; i += W) {
      const F x = S::load(fresh_score + i);
      const I from = S::load(made_from + i);
      const uint32_t bits = Sets::not_below(x, S::set1(least)) & Sets::first(fresh - i);
      Sets::pack(fresh_score + kept, x, bits);
      kept += Sets::pack(made_from + kept, from, bits);
    }
    fresh = kept;
    bound = least;
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
    // parents and their fusion states first: their slots may be given away
    for (int64_t i = 0; i < entering; ++i) {
      const Int from = made_from[chosen[i]];
      const int64_t slot = from % width;
      order[i] = node[slot];
      if constexpr (fused) {
        const BeamFusion& f = *options.fusion;
        double gain;
        f.extend(f.self, fusion_state(fusion, slot), (int32_t)token[from / width], fusion_state(entering_fusion, i),
                 &gain);
        entering_factor[i] = (Scalar)FASTCTC_MATH(exp)(gain);
        entering_bonus[i] = bonus[slot] + gain;
      }
    }
    const int64_t before = state.slots;
    for (int64_t i = 0; i < vacant; ++i) state.trie.slot[node[vacated[i]]] = -1;
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
      copy_state(fusion_state(fusion, slot), fusion_state(entering_fusion, i));
    }
  }

  void copy_state(int32_t* to, const int32_t* from) const {
    for (int j = 0; j < options.fusion->state_ints; ++j) to[j] = from[j];
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
        copy_state(fusion_state(fusion, slot), fusion_state(fusion, end));
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
      order[n++] = (Int)i;
      final_score[i] = FASTCTC_MATH(log)((double)total(now())[i]) + scale_of_all + ending(i);
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
    if constexpr (fused) return options.fusion->finish(options.fusion->self, fusion_state(fusion, slot));
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
