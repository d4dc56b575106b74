// The beam of one utterance, frame by frame, as csrc/cpu/beam_search_run.h has it: a prefix in the beam has a slot and
// pulls what flows from its parent by the parent's slot; then new prefixes compete for the slots.
//
// Thread i owns slot i. Prefixes are known by their places in a hash table of (parent, token) in global memory, so one
// that comes back is known as the parent of those that have stayed.
#pragma once

#include "beam_search_slots.cuh"
#include "beam_search_team.cuh"

namespace fastctc {
namespace cuda {

template <class X, bool fused, bool one_warp>
struct Beam {
  using Scalar = typename ComputeType<X>::type;
  using Group = Team<Scalar, one_warp>;
  using Limits = BeamLimits<Scalar>;
  static constexpr int width = beam_width(one_warp);  // no less than there are threads
  // Without a bonus no mass is 2^this. With one, its square could pass the largest number, and a frame's probabilities
  // times so small a scale the smallest.
  static constexpr int kMostRaised = 2;
  using Shared = BeamShared<Scalar, fused, width>;

  const BeamCall& call;
  const FusionView& fusion;
  Group team;
  Shared& s;
  NodeTable nodes;
  const int B, threads, slot;  // slot: this thread's

  // Of this thread's slot.
  bool alive;
  Scalar token_mass = 0;  // paths that end in the last token
  Scalar factor = 1;      // e^bonus of the last extension
  Scalar stay = 0;        // its mass after the frame, -1 once it has lost
  Scalar stay_token = 0, stay_blank = 0;
  int parent = -1, parent_slot = -1;
  bool repeats = false;  // the last token equals the one before it

  // The same for all threads.
  int prefixes = 1;  // in the beam
  int fresh = 0;     // new ones
  Scalar largest = 1, reach = 1;
  Scalar bound = 0, best = 0, worst = 0;
  long long exponent = 0;
  double log_scale = 0;
  const int* tokens;
  const Scalar* values;

  __device__ __forceinline__ Beam(const BeamCall& c, typename Group::Shared& team_shared, Shared& shared, int64_t n,
                                  int64_t frames)
      : call(c),
        fusion(c.fusion),
        team{team_shared},
        s(shared),
        nodes{c.nodes + n * c.p.shape.T * 2 * c.p.shape.beam_size, unsigned(2 * frames * c.p.shape.beam_size)},
        B(int(c.p.shape.beam_size)),
        threads(one_warp ? 32 : int(blockDim.x)),
        slot(int(threadIdx.x)),
        alive(threadIdx.x == 0) {
    clear();
    if (alive) {
      s.total[0] = s.blank[0] = 1;
      s.node[0] = int(nodes.size);
      if constexpr (fused) {
        s.state[0] = fusion_start(fusion);
        s.outlook[0] = outlook_of(s.state[0]);
      }
    }
    if constexpr (fused) reach = outlook_of(fusion_start(fusion));
  }

  __device__ __forceinline__ void clear() {
    s.total[slot] = s.blank[slot] = 0;
    s.last[slot] = 0;
    s.node[slot] = -1;
    s.depth[slot] = 0;
    s.first_child[slot] = -1;
    token_mass = 0;
    parent = parent_slot = -1;
    factor = 1;
    repeats = false;
    if constexpr (fused) {
      s.outlook[slot] = 1;
      s.bonus[slot] = 0;
    }
  }

  // x = m * 2^exponent with m in [0.5, 1); x is a positive normal number
  static __device__ __forceinline__ int exponent_of(double x) { return int(Number<double>::bits(x) >> 52) - 1022; }
  static __device__ __forceinline__ double two_to(int n) { return Number<double>::value((long long)(n + 1023) << 52); }
  static __device__ __forceinline__ Scalar at_least_tiny(double x) {
    return x > Limits::kTiny ? Scalar(x) : Scalar(Limits::kTiny);
  }
  __device__ __forceinline__ Scalar outlook_of(const FusionState& state) const {
    return exp(Scalar(fusion_largest_bonus(fusion, state)));
  }
  __device__ __forceinline__ PrefixOf candidate(int i) const {
    if (i < width) return {s.node[i], -1, s.depth[i]};
    const int from = s.from[i - width], of = from % width;
    return {s.node[of], tokens[from / width], s.depth[of] + 1};
  }

  // One more frame, whose score of this slot's last token is `last_score`. False: no prefix has a probability any more.
  __device__ __forceinline__ bool take(char* record, Scalar last_score) {
    const FrameHead<Scalar> head = *reinterpret_cast<const FrameHead<Scalar>*>(record);
    tokens = classes_of<Scalar>(record);
    values = values_of<Scalar>(record, call.room);
    if (!(largest >= Limits::kTiny) || head.kind == kNothing) return false;
    const int raised = exponent_of(largest);
    Scalar scale = Scalar(two_to(-raised));
    exponent += raised;
    if constexpr (fused)
      if (raised > kMostRaised) scale = shrink(scale);
    log_scale += head.log_scale;
    const Scalar blank_y = head.blank * scale;
    if (head.kind == kOnlyBlank) {
      const Scalar x = normal(s.total[slot] * blank_y);
      s.total[slot] = s.blank[slot] = x;
      token_mass = 0;
      measure(x);
      return true;
    }
    stay_on(head, blank_y, scale, last_score);
    extend(head.tokens, scale);
    settle();
    return true;
  }

  // Scales the masses themselves, and returns the scale that is left.
  __device__ __forceinline__ Scalar shrink(Scalar scale) {
    s.total[slot] = normal(s.total[slot] * scale);
    s.blank[slot] = normal(s.blank[slot] * scale);
    token_mass = normal(token_mass * scale);
    reach *= scale;
    team.sync();
    return 1;
  }

  __device__ __forceinline__ void measure(Scalar total) {
    Scalar far = total;
    if constexpr (fused) far = total * s.outlook[slot];
    const Extremes<Scalar> e = team.largest(total, far);
    largest = e.high;
    reach = e.other;
  }

  // Masses after the frame of the prefixes that are in the beam, and what a new one must reach.
  __device__ __forceinline__ void stay_on(const FrameHead<Scalar>& head, Scalar blank_y, Scalar scale,
                                          Scalar last_score) {
    const Scalar y = normal(exp(last_score - head.top)) * scale;
    Scalar pulled = 0;
    if (parent_slot >= 0) pulled = (repeats ? s.blank : s.total)[parent_slot];
    if constexpr (fused) pulled = exact_product(pulled, factor);
    stay_token = exact_product(token_mass + pulled, y);
    stay_blank = exact_product(s.total[slot], blank_y);
    stay = stay_token + stay_blank;
    const Extremes<Scalar> e = team.largest(stay, alive ? -stay : -Scalar(positive_infinity()));
    best = e.high;
    const double far = best * call.keep_share;
    worst = -e.other;
    bound = at_least_tiny(prefixes == B && worst > far ? double(worst) : far);
  }

  __device__ __forceinline__ bool in_beam(int of, int token) const {
    for (int child = s.first_child[of]; child >= 0; child = s.next_child[child])
      if (s.last[child] == token) return true;
    return false;
  }

  // Scores of the prefixes that one of the tokens makes and the beam does not hold. Several tokens are taken at once
  // where there are more threads than slots.
  __device__ __forceinline__ void extend(int count, Scalar scale) {
    fresh = 0;
    int lanes = threads;
    while (lanes / 2 >= B) lanes /= 2;
    const int of = slot % lanes, at_once = threads / lanes;
    const Scalar total = s.total[of], blank = s.blank[of];
    const int last = s.last[of];
    Scalar outlook = 1;
    if constexpr (fused) outlook = s.outlook[of];
    for (int k0 = 0; k0 < count; k0 += at_once) {
      if (reach * (values[k0] * scale) < bound) break;
      const int k = k0 + slot / lanes;
      Scalar product = 0;
      if (k < count && of < B) {
        const int token = tokens[k];
        product = normal(exact_product(token == last ? blank : total, values[k] * scale));
        if (!(exact_product(product, outlook) >= bound) || in_beam(of, token)) product = 0;
        if constexpr (fused)
          if (product > 0) product = priced(product, of, token);
      }
      int place;
      const int found = team.rank(product >= bound, &place);
      if (product >= bound) {
        s.score[fresh + place] = product;
        s.from[fresh + place] = k * width + of;
      }
      fresh += found;
      if (fresh + threads > Shared::kRoom) tighten();
    }
    team.sync();
  }

  __device__ __forceinline__ Scalar priced(Scalar product, int of, int token) const {
    FusionState after;
    const float bonus = fusion_extend(fusion, s.state[of], token, &after);
    return bonus >= Number<float>::kLowest ? product * exp(Scalar(bonus)) : Scalar(0);
  }

  // Where candidates run out of room: those that cannot enter any more go.
  __device__ __forceinline__ void tighten() {
    team.sync();
    bound = at_least_tiny(least_score(Limits::kTiny));
    int kept = 0;
    for (int i0 = 0; i0 < fresh; i0 += threads) {
      const int i = i0 + slot;
      const Scalar x = i < fresh ? s.score[i] : Scalar(-1);
      const int from = i < fresh ? s.from[i] : 0;
      int place;
      const int found = team.rank(x >= bound, &place);
      team.sync();  // a place may be one that another thread has just read
      if (x >= bound) {
        s.score[kept + place] = x;
        s.from[kept + place] = from;
      }
      kept += found;
    }
    fresh = kept;
  }

  // How many candidates score at least so much.
  __device__ __forceinline__ int count_from(Scalar least) {
    int count = __popc(__ballot_sync(kAllLanes, alive && stay >= least));
    for (int i0 = 0; i0 < fresh; i0 += threads)
      count += __popc(__ballot_sync(kAllLanes, i0 + slot < fresh && s.score[i0 + slot] >= least));
    return team.sum(count);
  }

  // The least score that stays in the beam, at least `lowest`; where equal ones are too many, the losers' become -1.
  __device__ __forceinline__ Scalar least_score(Scalar lowest) {
    using N = Number<Scalar>;
    if (count_from(lowest) <= B) return lowest;
    Scalar high = alive ? stay : Scalar(0);
    for (int i = slot; i < fresh; i += threads) high = Largest{}(high, s.score[i]);
    // positive numbers are in the order of their bits: more than B candidates are at least `low`, fewer above `top`
    auto low = N::bits(lowest), top = N::bits(team.largest(high, high).high);
    while (low < top) {
      const auto middle = top - (top - low) / 2;
      const int count = count_from(N::value(middle));
      if (count == B) return N::value(middle);
      if (count > B)
        low = middle;
      else
        top = middle - 1;
    }
    break_ties(N::value(low), B - count_from(N::value(low + 1)));
    return N::value(low);
  }

  __device__ __forceinline__ void break_ties(Scalar least, int winners) {
    int place, count = team.rank(alive && stay == least, &place);
    if (alive && stay == least) s.tied[place] = slot;
    for (int i0 = 0; i0 < fresh; i0 += threads) {
      const int i = i0 + slot;
      const bool ties = i < fresh && s.score[i] == least;
      const int found = team.rank(ties, &place);
      if (ties) s.tied[count + place] = width + i;
      count += found;
    }
    s.chosen[slot] = 0;
    team.sync();
    for (int i = slot; i < count; i += threads) {
      const PrefixOf mine = candidate(s.tied[i]);
      int before = 0;
      for (int k = 0; k < count; ++k) before += k != i && nodes.comes_first(candidate(s.tied[k]), mine);
      if (before < winners) continue;
      if (s.tied[i] < width)
        s.chosen[s.tied[i]] = 1;  // its thread will see to it
      else
        s.score[s.tied[i] - width] = -1;
    }
    team.sync();
    if (s.chosen[slot]) stay = -1;
    team.sync();
  }

  // Decides who is in the beam after the frame.
  __device__ __forceinline__ void settle() {
    Scalar most = best;
    for (int i = slot; i < fresh; i += threads) most = Largest{}(most, s.score[i]);
    if (fresh > 0) most = team.largest(most, most).high;
    const Scalar least = at_least_tiny(call.keep_share * most);
    if (fresh > 0 || worst < least) change(least_score(least));
    s.total[slot] = alive ? stay : Scalar(0);
    s.blank[slot] = alive ? stay_blank : Scalar(0);
    token_mass = alive ? stay_token : Scalar(0);
    measure(s.total[slot]);
  }

  // Those below `least` leave, and new ones from there on enter.
  __device__ __forceinline__ void change(Scalar least) {
    int entering = 0, place;
    for (int i0 = 0; i0 < fresh; i0 += threads) {
      const int i = i0 + slot;
      const bool enters = i < fresh && s.score[i] >= least;
      const int found = team.rank(enters, &place);
      if (enters) s.chosen[entering + place] = i;
      entering += found;
    }
    const bool leaves = alive && !(stay >= least), empty = slot < B && (!alive || leaves);
    const int leaving = team.rank(leaves, &place);
    if (entering == 0 && leaving == 0) return;
    team.rank(empty, &place);
    prefixes += entering - leaving;
    const bool fills = empty && place < entering;
    team.sync();
    // parents first: their slots may be given away
    Entrant e;
    if (fills) e = entrant(s.chosen[place]);
    team.sync();
    if (empty) clear();
    alive = fills || (alive && !leaves);
    if (fills) {
      fill(e);
      s.chosen[place] = slot;
      s.entered[place] = e.node;
    }
    team.sync();
    find_parents(entering);
  }

  struct Entrant {
    int node, parent, parent_slot, token, depth;
    bool repeats;
    Scalar mass, factor;
    double bonus;
    FusionState state;
  };

  __device__ __forceinline__ Entrant entrant(int i) const {
    Entrant e;
    const int from = s.from[i];
    e.parent_slot = from % width;
    e.token = tokens[from / width];
    e.parent = s.node[e.parent_slot];
    e.depth = s.depth[e.parent_slot] + 1;
    e.repeats = e.depth > 1 && s.last[e.parent_slot] == e.token;
    e.mass = s.score[i];
    e.node = nodes.child(e.parent, e.token);
    if constexpr (fused) {
      const float bonus = fusion_extend(fusion, s.state[e.parent_slot], e.token, &e.state);
      e.bonus = s.bonus[e.parent_slot] + bonus;
      e.factor = exp(Scalar(bonus));
    }
    return e;
  }

  __device__ __forceinline__ void fill(const Entrant& e) {
    s.node[slot] = e.node;
    s.last[slot] = e.token;
    s.depth[slot] = e.depth;
    parent = e.parent;
    parent_slot = e.parent_slot;
    repeats = e.repeats;
    stay = stay_token = e.mass;
    stay_blank = 0;
    if constexpr (fused) {
      s.bonus[slot] = e.bonus;
      s.state[slot] = e.state;
      s.outlook[slot] = outlook_of(e.state);
      factor = e.factor;
    }
  }

  __device__ __forceinline__ void find_parents(int entered) {
    if (parent_slot >= 0 && s.node[parent_slot] != parent) parent_slot = -1;
    if (parent >= 0 && parent_slot < 0)
      for (int i = 0; i < entered; ++i)
        if (s.entered[i] == parent) parent_slot = s.chosen[i];
    s.first_child[slot] = -1;
    team.sync();
    if (parent_slot >= 0) s.next_child[slot] = atomicExch(&s.first_child[parent_slot], slot);
  }

  // The results, after the last frame.
  __device__ __forceinline__ void finish(int64_t n) {
    const BeamSearchCudaParams& p = call.p;
    const double nothing = -positive_infinity();
    double score = nothing, lm_score = 0;
    if (alive && s.total[slot] > 0) {
      if constexpr (fused) lm_score = s.bonus[slot];
      score = log(double(s.total[slot])) + double(exponent) * 0.69314718055994530942 + log_scale;
      if constexpr (fused) {
        const double ending = fusion_finish(fusion, s.state[slot]);
        score += ending;
        lm_score += ending;
      }
    }
    s.final_score[slot] = score;
    team.sync();
    int place = 0;
    const bool valid = score > nothing;
    const PrefixOf mine{s.node[slot], -1, s.depth[slot]};
    for (int i = 0; valid && i < B; ++i) {
      const double other = s.final_score[i];
      place += other > score || (other == score && i != slot && nodes.comes_first({s.node[i], -1, s.depth[i]}, mine));
    }
    int unused;
    const int found = team.rank(valid, &unused), wanted = int(p.nbest);
    if (valid) s.chosen[place] = slot;
    team.sync();
    for (int64_t k = 0; k < wanted; ++k) {
      const int64_t length = k < found ? s.depth[s.chosen[k]] : 0;
      int64_t* const out = p.tokens + (n * wanted + k) * p.shape.T;
      for (int64_t i = length + slot; i < p.shape.T; i += threads) out[i] = p.blank;
    }
    for (int k = found + slot; k < wanted; k += threads) write(n * wanted + k, 0, nothing, 0);
    if (!valid || place >= wanted) return;
    write(n * wanted + place, mine.depth, score, lm_score);
    int64_t* const out = p.tokens + (n * wanted + place) * p.shape.T;
    int node = mine.node;
    for (int i = mine.depth; i-- > 0;) {
      const NodeKey key = __ldcg(nodes.keys + node);
      out[i] = NodeTable::token(key);
      node = NodeTable::parent(key);
    }
  }

  __device__ __forceinline__ void write(int64_t row, int length, double score, double lm_score) const {
    call.p.token_lengths[row] = length;
    call.p.final_scores[row] = score;
    call.p.lm_scores[row] = lm_score;
  }
};

}  // namespace cuda
}  // namespace fastctc
