// One frame of a beam: what it says, the masses of the prefixes that are in the beam, and the classes that may make new
// ones.
#pragma once

#include "beam_search_layout.h"
#include "beam_search_select.h"
#include "beam_search_trie.h"
#include "simd/rows.h"

namespace {

template <class Scalar>
struct BeamLimits;
template <>
struct BeamLimits<float> {
  static constexpr float kTiny = 1.17549435e-38f;  // the smallest normal number: what is below has no mass
  static constexpr double kLowest = -87.4;         // and its logarithm, rounded down
  static constexpr double kHighestBonus = 80;      // e^bonus times a scaled mass stays finite
};
template <>
struct BeamLimits<double> {
  static constexpr double kTiny = 2.2250738585072014e-308;
  static constexpr double kLowest = -708.4;
  static constexpr double kHighestBonus = 700;
};

// Without a bonus no mass is 2^this. With one, its square could pass the largest number, and a frame's probabilities
// times so small a scale the smallest.
constexpr int64_t kMostRaised = 2;

// x = m * 2^exponent with m in [0.5, 1); x is a positive normal number
FASTCTC_INLINE int64_t exponent_of(double x) {
  uint64_t bits;
  FASTCTC_COPY(&bits, &x, sizeof bits);
  return (int64_t)(bits >> 52) - 1022;
}
FASTCTC_INLINE double two_to(int64_t n) { return double_of_bits((uint64_t)(n + 1023) << 52); }

template <class S, class X, bool fused>
struct BeamFrame : BeamLayout<S> {
  using Layout = BeamLayout<S>;
  using F = typename S::F;
  using I = typename S::I;
  using Scalar = typename S::Scalar;
  using Int = typename S::Int;
  using Sets = LaneSets<S>;
  static constexpr int W = S::W;
  using Layout::bonus;
  using Layout::children;
  using Layout::columns;
  using Layout::entering_state;
  using Layout::factor;
  using Layout::last;
  using Layout::mass;
  using Layout::node;
  using Layout::order;
  using Layout::outlook;
  using Layout::parent;
  using Layout::parent_slot;
  using Layout::priced;
  using Layout::priced_token;
  using Layout::prices;
  using Layout::repeats;
  using Layout::row_outlook;
  using Layout::row_room;
  using Layout::row_state;
  using Layout::row_users;
  using Layout::rows;
  using Layout::score;
  using Layout::scratch;
  using Layout::source;
  using Layout::token;
  using Layout::token_mass;
  using Layout::token_y;
  using Layout::width;

  BeamState& state;
  const BeamOptions& options;
  const double keep_share;  // e^-beam_threshold

  // Of the frame at hand.
  const Scalar* scores;    // C of them
  Scalar top;              // the best of them,
  double top_probability;  // and its probability
  Scalar scale;            // 2^-exponent of the largest mass
  Scalar largest;          // the largest mass, unscaled,
  Scalar reach;            // and the largest that an extension may reach before its emission
  Scalar worst, best;      // of the slots' prefixes after the frame
  Scalar bound;            // new prefixes below it cannot enter
  int64_t tokens, fresh;   // classes that may make new prefixes; new prefixes

  explicit BeamFrame(BeamState& s)
      : state(s), options(s.options), keep_share(FASTCTC_MATH(exp)(-s.options.beam_threshold)) {
    this->lay_out(s.options, s.workspace);
  }

  Scalar* total(int set) const { return mass[set]; }
  Scalar* blank_mass(int set) const { return mass[set] + width; }
  int now() const { return state.current; }
  int next() const { return 1 - state.current; }
  int32_t* fusion_state(int32_t* states, int64_t i) const { return states + i * BeamFusion::kStateInts; }
  const int32_t* state_of(int64_t slot) const { return fusion_state(row_state, prices[slot] / columns); }
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
    state.current = 0;
    state.exponent = 0;
    state.log_scale = 0;
    state.excessive_bonus = 0;
    state.slots = 1;
    node[0] = kEmptyPrefix;
    state.trie.slot[kEmptyPrefix] = 0;
    total(0)[0] = blank_mass(0)[0] = 1;
    if constexpr (fused) {
      for (int64_t i = 0; i < rows; ++i) row_users[i] = -1;
      number_classes();
      options.fusion->start(options.fusion->self, entering_state);
      bonus[0] = 0;
      use_row(0, find_row(entering_state));
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
    if constexpr (fused) {
      factor[i] = outlook[i] = 1;
      prices[i] = 0;
      children[i] = 0;
    }
  }

  // The row of a state. No more than half of the rows are in use.
  int64_t find_row(const int32_t* fusion_state_of_it) {
    constexpr int kNear = 4;
    uint64_t hash = 0;
    for (int i = 0; i < BeamFusion::kStateInts; ++i)
      hash = (hash ^ (uint32_t)fusion_state_of_it[i]) * 0x9e3779b97f4a7c15u;
    int64_t spare = -1;
    for (int64_t i = 0; i < kNear || spare < 0; ++i) {
      const int64_t row = (int64_t)((hash >> 32) + (uint64_t)i) & (rows - 1);
      if (row_users[row] >= 0 && same_state(fusion_state(row_state, row), fusion_state_of_it)) return row;
      if (row_users[row] <= 0 && spare < 0) spare = row;
    }
    copy_state(fusion_state(row_state, spare), fusion_state_of_it);
    row_users[spare] = 0;
    if (!exact_rows())
      for (int64_t i = spare * columns; i < (spare + 1) * columns; ++i) priced_token[i] = -1;
    if (rows_are_whole()) {
      row_outlook[spare] = bound_each_class(fusion_state_of_it, priced + spare * columns);
    } else {
      const Scalar most = (Scalar)options.fusion->largest_bonus(options.fusion->self, fusion_state_of_it);
      row_outlook[spare] = exp_value<S>(S::set1(most))[0];
    }
    return spare;
  }

  // What each class gives at most in a state, as factors; returns the largest.
  Scalar bound_each_class(const int32_t* fusion_state_of_it, Scalar* factors) {
    if (exact_rows())
      add_rows(fusion_state_of_it, factors);
    else
      find_largest_bonuses(fusion_state_of_it, factors);
    F most = S::set1(0);
    for (int64_t c = 0; c < columns; c += W) {
      const F x = exp_value<S>(S::load(factors + c));
      S::store(factors + c, x);
      most = S::at_least(x, most);
    }
    return S::largest(most);
  }

  void add_rows(const int32_t* fusion_state_of_it, Scalar* bonuses) {
    const fastctc::BonusRows& r = options.fusion->rows;
    const float* const ngram = r.ngram + r.ngram_stride * fusion_state_of_it[0];
    const float* const symbols = r.symbols + r.symbols_stride * fusion_state_of_it[2];
    for (int64_t c = 0; c < columns; ++c) bonuses[c] = (Scalar)(ngram[c] + symbols[c]);
    if (fusion_state_of_it[1] == 0)
      for (int32_t i = 0; i < r.boundary_count; ++i) bonuses[r.boundaries[i]] = (Scalar)ngram[r.boundaries[i]];
  }

  void find_largest_bonuses(const int32_t* fusion_state_of_it, Scalar* bonuses) {
    float largest[Layout::kMostColumns];
    options.fusion->largest_bonuses(options.fusion->self, fusion_state_of_it, (int32_t)options.C, largest);
    largest[options.blank] = -(float)infinity();
    for (int64_t c = 0; c < columns; ++c) bonuses[c] = c < options.C ? (Scalar)largest[c] : -(Scalar)infinity();
  }

  void use_row(int64_t slot, int64_t row) {
    ++row_users[row];
    prices[slot] = (Int)(row * columns);
    outlook[slot] = row_outlook[row];
  }
  bool rows_are_whole() const { return options.C <= columns; }
  bool exact_rows() const { return options.fusion->rows.ngram != nullptr; }

  bool same_state(const int32_t* a, const int32_t* b) const {
    for (int i = 0; i < BeamFusion::kStateInts; ++i)
      if (a[i] != b[i]) return false;
    return true;
  }
  void copy_state(int32_t* to, const int32_t* from) const {
    for (int i = 0; i < BeamFusion::kStateInts; ++i) to[i] = from[i];
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
    if constexpr (fused) {
      if (rows_are_whole()) {
        if (options.top_k == 0 && options.top_p >= 1) return weigh_classes();
        list_tokens();
        return spread_tokens();
      }
    }
    list_tokens();
  }

  void weigh_classes() {
    tokens = options.C;
    for (int64_t c = 0; c < options.C; c += W) {
      const int64_t left = options.C - c;
      const F x = left >= W ? S::load(scores + c) : load_part<S>(scores + c, left, -(Scalar)infinity());
      S::store(token_y + c, scaled_probability(x));
    }
    token_y[options.blank] = 0;
  }

  // Puts the tokens at the places of their classes.
  void spread_tokens() {
    for (int64_t c = 0; c < row_room; ++c) scratch[c] = 0;
    for (int64_t k = 0; k < tokens; ++k) scratch[token[k]] = token_y[k];
    for (int64_t c = 0; c < row_room; ++c) token_y[c] = scratch[c];
    if (tokens > 0) tokens = options.C;
    number_classes();
  }

  void number_classes() {
    for (int64_t c = 0; c < options.C; ++c) token[c] = (Int)c;
  }

  void list_tokens() {
    double cut = FASTCTC_MATH(log)((double)bound / ((double)reach * scale));
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
};

}  // namespace
