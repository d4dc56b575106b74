// The prefixes that one more token makes: which could enter the beam, and their scores.
#pragma once

#include "beam_search_frame.h"

namespace {

template <class S, class X, bool fused>
struct BeamExtensions : BeamFrame<S, X, fused> {
  using Frame = BeamFrame<S, X, fused>;
  using F = typename S::F;
  using Scalar = typename S::Scalar;
  using Int = typename S::Int;
  using I = typename S::I;
  using Sets = LaneSets<S>;
  static constexpr int W = S::W;
  using Frame::blank_mass;
  using Frame::bound;
  using Frame::child_in_beam;
  using Frame::children;
  using Frame::columns;
  using Frame::entering_state;
  using Frame::fresh;
  using Frame::last;
  using Frame::made_from;
  using Frame::node;
  using Frame::now;
  using Frame::options;
  using Frame::order;
  using Frame::outlook;
  using Frame::parent_slot;
  using Frame::priced;
  using Frame::priced_token;
  using Frame::prices;
  using Frame::reach;
  using Frame::room;
  using Frame::score;
  using Frame::scratch;
  using Frame::state;
  using Frame::state_of;
  using Frame::token;
  using Frame::token_y;
  using Frame::tokens;
  using Frame::total;
  using Frame::vectors;
  using Frame::width;

  using Frame::Frame;

  int64_t weighed;  // new prefixes that have made the bound what it is

  // A bit for each slot whose prefix with token c is in the beam already.
  void mark_children(Int c) {
    const int64_t n = vectors();
    for (int64_t v = 0; v < n; ++v) child_in_beam[v] = 0;
    for (int64_t v = 0; v < n; ++v)
      for (uint32_t bits = Sets::equal(S::load(last + v * W), S::set1i(c)); bits; bits &= bits - 1) {
        const Int slot = parent_slot[v * W + lowest_bit(bits)];
        if (slot >= 0) child_in_beam[slot / W] |= (uint16_t)(1u << slot % W);
      }
  }

  // Scores of the prefixes that one of the tokens makes and the beam does not hold.
  void extend() {
    fresh = 0;
    if (tokens == 0) return;
    weighed = 0;
    if constexpr (fused)
      if (this->rows_are_whole()) return extend_by_classes();
    put_best_token_first();
    extend_by(0);
    for (int64_t k = 1; k < tokens; ++k) {
      tighten_now_and_then();
      if (!(reach * token_y[k] < bound)) extend_by(k);
    }
  }

  // Where rows are whole. The best class first: it raises the bound most. Few of the others reach it then, and with few
  // of the slots.
  void extend_by_classes() {
    Scalar highest = highest_class();
    if (reach * highest < bound) return;
    int64_t best = 0;
    while (token_y[best] != highest) ++best;
    extend_by(best);
    token_y[best] = 0;
    highest = highest_class();
    const F y = S::set1(highest);
    const Scalar* const totals = total(now());
    const int64_t n = vectors();
    for (int64_t i = 0; i < n * W; i += W) {
      tighten_now_and_then();
      const F most = S::load(totals + i) * y * S::load(outlook + i);
      int found = 0, slots[W];
      uint64_t classes[W];
      for (uint32_t bits = Sets::not_below(most, S::set1(bound)); bits; bits &= bits - 1) {
        slots[found] = (int)i + lowest_bit(bits);
        classes[found] = classes_reaching(slots[found]);
        found += classes[found] != 0;
      }
      for (int k = 0; k < found; ++k) extend_slot(slots[k], classes[k]);
    }
  }

  // Those with which a prefix makes a new one that could enter.
  uint64_t classes_reaching(int64_t slot) const {
    const Scalar* const row = priced + prices[slot];
    const F all = S::set1(total(now())[slot]), least = S::set1(bound);
    uint64_t reaching = 0;
    for (int64_t c = 0; c < options.C; c += W)
      reaching |= (uint64_t)Sets::not_below(all * S::load(token_y + c) * S::load(row + c), least) << c;
    return reaching & ~children[slot];
  }

  Scalar highest_class() const {
    F most = S::set1(0);
    for (int64_t c = 0; c < options.C; c += W) most = S::at_least(S::load(token_y + c), most);
    return S::largest(most);
  }

  void extend_slot(int64_t slot, uint64_t classes) {
    const Scalar* const row = priced + prices[slot];
    for (; classes; classes &= classes - 1) {
      const int c = lowest_bit(classes);
      const bool same = c == last[slot];  // only what ends in a blank goes on to the same token again
      const Scalar x = (same ? blank_mass(now()) : total(now()))[slot] * token_y[c];
      if (!(x * row[c] >= bound)) continue;
      if (!this->exact_rows()) price_if_new(slot, c);
      const Scalar extended = x * row[c];
      if (!(extended >= bound)) continue;
      score[state.slots + fresh] = extended;
      made_from[fresh++] = (Int)(c * width + slot);
    }
    if (fresh + columns > room) tighten();
  }

  // New prefixes, and where they are made from.
  void note(F x, uint32_t bits, I from) {
    if (!bits) return;
    Sets::pack(score + state.slots + fresh, x, bits);
    fresh += Sets::pack(made_from + fresh, from, bits);
    if (fresh + W > room) tighten();
  }

  void extend_by(int64_t k) {
    const Int c = token[k];
    const int64_t n = vectors();
    const F y = S::set1(token_y[k]);
    const Scalar* const totals = total(now());
    bool marked = false;
    for (int64_t v = 0; v < n; ++v) {
      const int64_t i = v * W;
      const F least = S::set1(bound);
      F x = S::load(totals + i) * y;
      uint32_t bits = Sets::not_below(fused ? x * S::load(outlook + i) : x, least);
      if (!bits) continue;
      if (fused && this->rows_are_whole()) {
        bits &= Sets::without_bit(children + i, (int)c);
      } else {
        if (!marked) mark_children(c);
        marked = true;
        bits &= ~(uint32_t)child_in_beam[v];
      }
      const uint32_t same = Sets::equal(S::load(last + i), S::set1i(c)) & bits;
      if (same) {  // only what ends in a blank goes on to the same token again
        x = Sets::pick(same, S::load(blank_mass(now()) + i) * y, x);
        bits &= Sets::not_below(fused ? x * S::load(outlook + i) : x, least);
      }
      if (!bits) continue;
      if constexpr (fused) {
        const Scalar* const column = priced + (c & (columns - 1));
        const I at = S::load(prices + i);
        F factors = Sets::gather(column, at);
        if (!this->exact_rows()) {
          if (this->rows_are_whole()) bits &= Sets::not_below(x * factors, least);
          factors = price_column(bits, c, i, factors);
        }
        x = x * factors;
        bits &= Sets::not_below(x, least);
      }
      note(x, bits, Sets::count_from((Int)(k * width + i)));
    }
  }

  // It raises the bound most, and spares the others.
  void put_best_token_first() {
    int64_t most = 0;
    for (int64_t k = 1; k < tokens; ++k)
      if (token_y[k] > token_y[most]) most = k;
    const Scalar y = token_y[most];
    const Int c = token[most];
    token_y[most] = token_y[0], token[most] = token[0];
    token_y[0] = y, token[0] = c;
  }

  // What extensions of some slots by a token give is worked out once for a state, and only where the most that it could
  // be would do. Gathering it from where it has just been put would wait for the stores.
  F price_column(uint32_t lanes, Int c, int64_t slot, F known) {
    uint32_t unknown = 0;
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      const int i = lowest_bit(rest);
      if (priced_token[prices[slot + i] + (c & (columns - 1))] != (int32_t)c) unknown |= 1u << i;
    }
    if (!unknown) return known;
    const F found = price(unknown, [&](int i) { return slot + i; }, [&](int) { return (int32_t)c; });
    return Sets::pick(unknown, found, known);
  }

  void price_if_new(int64_t slot, int c) {
    if (priced_token[prices[slot] + c] < 0) price(1, [&](int) { return slot; }, [&](int) { return (int32_t)c; });
  }

  template <class Slot, class Token>
  F price(uint32_t lanes, Slot slot_of, Token token_of) {
    const BeamFusion& f = *options.fusion;
    Scalar bonuses[W];
    S::store(bonuses, S::set1(0));
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      const int i = lowest_bit(rest);
      const double b = f.extend(f.self, state_of(slot_of(i)), token_of(i), entering_state);
      if (b > BeamLimits<Scalar>::kHighestBonus) state.excessive_bonus = b;
      bonuses[i] = (Scalar)b;
    }
    const F factors = exp_value<S>(S::load(bonuses));
    S::store(bonuses, factors);
    for (uint32_t rest = lanes; rest; rest &= rest - 1) {
      const int i = lowest_bit(rest);
      const int64_t at = prices[slot_of(i)] + (token_of(i) & (columns - 1));
      priced[at] = bonuses[i];
      priced_token[at] = token_of(i);
    }
    return factors;
  }

  // Drops the new prefixes that score less.
  void keep(Scalar least) {
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

  // Once there are many more than have made the bound what it is.
  void tighten_now_and_then() {
    if (2 * (fresh - weighed) < options.beam_size) return;
    tighten();
    weighed = fresh;
  }

  // Candidates that cannot enter any more go.
  void tighten() {
    const Scalar least = least_score();
    if (least > bound) bound = least;
    keep(bound);
  }
};

}  // namespace
