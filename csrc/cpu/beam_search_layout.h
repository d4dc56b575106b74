// Where one beam's arrays lie in its workspace. Scores within the beam are linear, scaled by one power of two a frame.
#pragma once

#include "beam_search_kernel.h"
#include "simd/carver.h"
#include "simd/lanes.h"
#include "simd/storage.h"

namespace {

using fastctc::BeamFusion;
using fastctc::BeamOptions;
using fastctc::BeamState;

template <class S>
struct BeamLayout {
  using Scalar = typename S::Scalar;
  using Int = typename S::Int;
  static constexpr int W = S::W;

  int64_t width;     // slots, in whole vectors
  int64_t room;      // for candidates that are new prefixes
  int64_t row_room;  // for the classes of a frame

  // Of each slot. Twice, as a frame's masses are made from those before: [total | paths ending in blank | a vector of
  // zeros] in one array, so that what flows from the parent's slot is one gather; and the paths ending in the last
  // token.
  Scalar* mass[2];
  Scalar* token_mass[2];
  Int* last;         // last token; 0 for the empty prefix, whose token mass is 0 anyway
  Int* node;         // in the trie
  Int* parent;       // in the trie
  Int* parent_slot;  // or -1
  Int* repeats;      // `width` where the last token equals the one before it, else 0
  Int* source;       // index into `mass` of what may flow from the parent
  // with a fusion
  Scalar* factor;      // e^bonus of the last extension
  double* bonus;       // of all extensions
  Scalar* outlook;     // e^bonus, at most, of the next extension
  Int* prices;         // where the row of its state begins in `priced`
  uint64_t* children;  // where rows are whole: bit c: the extension by class c is in the beam
  // and of the prefixes that are about to enter
  Scalar* entering_factor;
  double* entering_bonus;
  int32_t* entering_state;

  // Of each fusion state that is or was lately in the beam, a row: what is known of its extensions. That by token c has
  // the entry c % columns, where priced_token is c. Up to `columns` classes rows are whole: an entry without a token,
  // -1, is what that class gives at most, and those past C are 0.
  static constexpr int64_t kMostColumns = fastctc::BonusRows::kMostClasses;
  int64_t rows, columns;  // powers of two
  int32_t* row_state;
  int32_t* row_users;   // slots in that state; -1: there is no state in the row
  Scalar* row_outlook;  // e^bonus, at most, of any extension
  int32_t* priced_token;
  Scalar* priced;  // e^bonus

  // Of one frame.
  Scalar* row;              // scores in the compute type, where stored in another
  Int* token;               // classes that may make new prefixes; where rows are whole, token c is class c,
  Scalar* token_y;          // their scores and then their scaled probabilities, 0 of those that may not
  uint16_t* child_in_beam;  // of one class, a bit for each slot
  Scalar* score;            // of the candidates: the slots' prefixes first, then the new ones
  Int* made_from;           // of a new one: place in `token` * width + slot of its parent
  Scalar* scratch;
  Int* chosen;   // the new ones that enter the beam
  Int* vacated;  // slots that are free
  Int* order;
  double* final_score;

  void lay_out(const BeamOptions& o, void* base) {
    Carver carve{static_cast<char*>(base)};
    const int64_t B = o.beam_size, vectors = (B + W - 1) / W;
    width = vectors * W;
    room = at_least(4 * B, B + 512);
    row_room = (o.C + W - 1) / W * W + W;
    const int64_t candidates = width + room + 2 * W;
    for (int k = 0; k < 2; ++k) {
      mass[k] = carve.take<Scalar>(2 * width + W);
      token_mass[k] = carve.take<Scalar>(width);
    }
    Int** const fields[] = {&last, &node, &parent, &parent_slot, &repeats, &source};
    for (Int** field : fields) *field = carve.take<Int>(width);
    if (o.fusion) lay_out_fusion(o, carve);
    row = carve.take<Scalar>(row_room);
    token = carve.take<Int>(row_room);
    token_y = carve.take<Scalar>(row_room);
    child_in_beam = carve.take<uint16_t>(vectors);
    score = carve.take<Scalar>(candidates);
    made_from = carve.take<Int>(candidates);
    scratch = carve.take<Scalar>(at_least(candidates, row_room));
    chosen = carve.take<Int>(candidates);
    vacated = carve.take<Int>(width + W);
    order = carve.take<Int>(candidates);
    final_score = carve.take<double>(width);
    used = carve.used;
  }
  int64_t used;

  void lay_out_fusion(const BeamOptions& o, Carver& carve) {
    constexpr int64_t kFewestRows = 1024;
    columns = W;
    while (columns < kMostColumns && columns < o.C) columns *= 2;
    rows = kFewestRows;
    while (rows < 2 * width) rows *= 2;
    row_state = carve.take<int32_t>(rows * BeamFusion::kStateInts);
    row_users = carve.take<int32_t>(rows);
    row_outlook = carve.take<Scalar>(rows);
    priced_token = carve.take<int32_t>(rows * columns);
    priced = carve.take<Scalar>(rows * columns);
    prices = carve.take<Int>(width);
    children = carve.take<uint64_t>(width);
    Scalar** const fields[] = {&factor, &outlook, &entering_factor};
    for (Scalar** field : fields) *field = carve.take<Scalar>(width);
    bonus = carve.take<double>(width);
    entering_bonus = carve.take<double>(width);
    entering_state = carve.take<int32_t>(width * BeamFusion::kStateInts);
  }

  // How many classes of a frame are looked at. Where nothing but the scores decides, a token with beam_size + 1 better
  // ones before it cannot enter: with at most one exception, its repetition, each makes a better new prefix of the same
  // parent. The blank counts.
  FASTCTC_INLINE int64_t token_limit(const BeamOptions& o) {
    const int64_t sufficient = o.fusion ? o.C : at_most(o.C, o.beam_size + 2);
    return o.top_k > 0 ? at_most(sufficient, o.top_k) : sufficient;
  }
};

}  // namespace
