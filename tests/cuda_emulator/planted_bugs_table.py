"""The mistakes that `planted_bugs.py` plants besides missing barriers."""

# (file in csrc/cuda, text that occurs once in it, with a statement or an expression marked, what
# takes the place of what is marked, what is wrong then). A constant cannot be switched: mark a use.
PLANTED = (
    # ---- a block's and a warp's reductions
    (
        "ctc_loss_block.cuh",
        "step = lanes / 2; «step > 0»",
        "step > 1",
        "loop ends early",
    ),
    (
        "ctc_loss_block.cuh",
        "«__shfl_xor_sync(kAllLanes, value, step)»",
        "__shfl_xor_sync(0xffffu, value, step)",
        "mask",
    ),
    (
        "ctc_loss_block.cuh",
        "«__shfl_xor_sync(kAllLanes, value, step)»",
        "__shfl_down_sync(kAllLanes, value, step)",
        "shuffle",
    ),
    (
        "ctc_loss_block.cuh",
        "shared[«threadIdx.x / 32»] = value",
        "threadIdx.x / 32 + 1",
        "index off by one",
    ),
    (
        "ctc_loss_block.cuh",
        "«warp < blockDim.x / 32»; ++warp",
        "warp <= blockDim.x / 32",
        "<= for <",
    ),
    # ---- prepare
    (
        "ctc_loss_prepare.cuh",
        "rank += «pair_class[k] <= own»",
        "pair_class[k] < own",
        "equal classes on one rank",
    ),
    (
        "ctc_loss_prepare.cuh",
        "for (int k = i + 1; «k < pairs»; ++k)",
        "k <= pairs",
        "<= for <",
    ),
    (
        "ctc_loss_prepare.cuh",
        "pair_class[«i + 1»] = inside",
        "i",
        "index off by one",
    ),
    (
        "ctc_loss_prepare.cuh",
        "«label >= 0 && label < p.shape.C»",
        "label >= 0 && label <= p.shape.C",
        "<= for <",
    ),
    (
        "ctc_loss_prepare.cuh",
        "__ballot_sync(«kAllLanes», begins)",
        "0x7fffffffu",
        "mask",
    ),
    (
        "ctc_loss_prepare.cuh",
        "«kAllLanes >> (31 - lane)»",
        "kAllLanes >> lane",
        "lanes counted from the wrong end",
    ),
    ("ctc_loss_prepare.cuh", "if («w < warp») entry +=", "w <= warp", "<= for <"),
    (
        "ctc_loss_prepare.cuh",
        "segments[entries] = «pairs»;",
        "pairs - 1",
        "end off by one",
    ),
    (
        "ctc_loss_prepare.cuh",
        "«row.frames >= row.labels + repeats»",
        "row.frames > row.labels + repeats",
        "> for >=",
    ),
    (
        "ctc_loss_prepare.cuh",
        "groups += «row_groups(call.plan, labels)»",
        "row_groups(call.plan, labels) - 1",
        "rows share memory",
    ),
    # ---- one pass over the scores
    (
        "ctc_loss_rows.cuh",
        "«first >= 0 && first + Packet<X>::kSize <= C»",
        "first >= 0 && first < C",
        "vector beyond the row",
    ),
    (
        "ctc_loss_rows.cuh",
        "«first + k >= 0 && first + k < C» ? to",
        "first + k >= 0 && first + k <= C",
        "<= for <",
    ),
    (
        "ctc_loss_rows.cuh",
        "    }\n    emissions[emission_place(row.entries, t, «entry»)]",
        "entry + 1",
        "index off by one",
    ),
    (
        "ctc_loss_rows.cuh",
        "const int t = int(item / rows);\n  const int64_t r = «item % rows»",
        "item % (rows + 1)",
        "row off by one",
    ),
    # ---- the lattice
    (
        "ctc_loss_lattice.cuh",
        "«__shfl_up_sync(kAllLanes, q[K - 1].m, 1)»",
        "__shfl_up_sync(kAllLanes, q[K - 1].m, 2)",
        "lane offset",
    ),
    (
        "ctc_loss_lattice.cuh",
        "«__shfl_up_sync(kAllLanes, q[K - 1].e, 1)»",
        "__shfl_down_sync(kAllLanes, q[K - 1].e, 1)",
        "shuffle",
    ),
    (
        "ctc_loss_lattice.cuh",
        "«__shfl_up_sync(kAllLanes, q[K - 1].m, 1)»",
        "__shfl_up_sync(0x0fffffffu, q[K - 1].m, 1)",
        "mask",
    ),
    ("ctc_loss_lattice.cuh", "if («lane == 31») edge_out", "lane == 30", "wrong lane"),
    (
        "ctc_loss_lattice.cuh",
        "entering = edge_in[«turn * kBlockFrames + f»]",
        "f",
        "no second buffer",
    ),
    (
        "ctc_loss_lattice.cuh",
        "edge_out[«turn * kBlockFrames + f»]",
        "f",
        "no second buffer",
    ),
    (
        "ctc_loss_lattice.cuh",
        "«rest + warps_needed - 1»",
        "rest + warps_needed - 2",
        "a step too few",
    ),
    (
        "ctc_loss_lattice.cuh",
        "«warp * 32 * K < labels + K»",
        "warp * 32 * K < labels - 32 * K",
        "a warp too few",
    ),
    (
        "ctc_loss_lattice.cuh",
        "«pair_class[label] != pair_class[next]»",
        "pair_class[label] == pair_class[next]",
        "repeats",
    ),
    (
        "ctc_loss_lattice.cuh",
        "states.state[«kReverse ? K - 1 - k : k»]",
        "k",
        "order within a lane",
    ),
    ("ctc_loss_lattice.cuh", "step = 16; «step > 0»", "step > 1", "loop ends early"),
    (
        "ctc_loss_lattice.cuh",
        "shared[«threadIdx.x / 32»] = sum",
        "threadIdx.x / 32 + 2 * kMostWarps",
        "beyond a shared array",
    ),
    ("ctc_loss_lattice.cuh", "«b[k] = normalised(b[k]);»", "", "mantissas grow"),
    (
        "ctc_loss_lattice.cuh",
        "«blank >= 0 && blank <= labels») blanks[blank] = b[k]",
        "blank >= 0 && blank <= labels + 1",
        "<= and one more",
    ),
    (
        "ctc_loss_lattice.cuh",
        "«if (has_states) *lowest_at = lowest;»",
        "",
        "states relative to nothing",
    ),
    (
        "ctc_loss_lattice.cuh",
        "return largest + «kBlockGrowth» + 1",
        "14",
        "states above the near range",
    ),
    (
        "ctc_loss_lattice.cuh",
        "next_lowest = lowest_at[«kReverse ? -kGroupLanes : kGroupLanes»]",
        "0",
        "states relative to another block",
    ),
    (
        "ctc_loss_lattice.cuh",
        "«valid[k] ? l[k].e : lowest»",
        "lowest",
        "exponents are lost",
    ),
    (
        "ctc_loss_lattice.cuh",
        "near = «near && label[k].e >= lowest»",
        "true",
        "states out of the near range",
    ),
    (
        "ctc_loss_lattice.cuh",
        "Exponent signs = «y_blank[run].frame[at]»",
        "Exponent(0)",
        "a blank out of the near range",
    ),
    (
        "ctc_loss_lattice.cuh",
        "«row.labels > call.plan.longest» ||",
        "row.labels >= call.plan.longest",
        ">= for >",
    ),
    # ---- packed numbers
    (
        "ctc_loss_numbers.cuh",
        "const auto from = «lowest + kMantissaRoom»;",
        "lowest",
        "far states too small",
    ),
    (
        "ctc_loss_numbers.cuh",
        "(Exponent(1) << («dropped - 1»));\n  return",
        "dropped + 1",
        "rounded at the wrong bit",
    ),
    # ---- what is -inf
    (
        "ctc_loss_numbers.cuh",
        "return «below < VeryFar::kRange - 1» ? kSign",
        "true",
        "dead emissions wrap",
    ),
    (
        "ctc_loss_numbers.cuh",
        "if («code == Exponent(-1)») return",
        "false",
        "dead emissions come back to life",
    ),
    (
        "ctc_loss_numbers.cuh",
        "at_least(a.e + (bits >> N::kMantissaBits) - N::kBias, «N::kFloor»)",
        "a.e + (bits >> N::kMantissaBits) - N::kBias",
        "exponents wrap",
    ),
    (
        "ctc_loss_lattice.cuh",
        "possible = «total.e >= Number<Scalar>::kDeadBelow»",
        "true",
        "a loss where no path is possible",
    ),
    # ---- a barrier per frame
    (
        "ctc_loss_lattice_general.cuh",
        "slot(«row.long_at - call.saved.rows[first_row].long_at»)",
        "0",
        "rows share memory",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "«row.labels <= call.plan.longest» ||",
        "false",
        "a row taken by both kernels",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "if (leaves(«i - 1»)) state",
        "i",
        "index off by one",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "blank_before = «i < row.labels» ?",
        "i <= row.labels",
        "<= for <",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "«t % segment_frames == 0»",
        "t % segment_frames == 1",
        "checkpoint a frame late",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "next = {memory + 2 * width, «memory + 3 * width»}",
        "memory + width",
        "buffers overlap",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "«i == 0» ? Scalar(0) : plain",
        "i == 1",
        "index off by one",
    ),
    # ---- posterior sums, gradient and losses
    (
        "ctc_loss_sums.cuh",
        "«lane % kGroupLanes * lane_stride»",
        "lane % kGroupLanes * 1",
        "layout",
    ),
    ("ctc_loss_sums.cuh", "«rank < to»; ++rank", "rank + 1 < to", "loop ends early"),
    (
        "ctc_loss_sums.cuh",
        "segments[entry], segments[«entry + 1»]",
        "entry",
        "index off by one",
    ),
    (
        "ctc_loss_sums.cuh",
        "«frame < frames»; frame += warps",
        "frame + 1 < frames",
        "loop ends early",
    ),
    (
        "ctc_loss_gradient.cuh",
        "«at >= 0 && at < room») subtrahend",
        "at >= 0 && at <= room",
        "<= for <",
    ),
    ("ctc_loss_gradient.cuh", "«threadIdx.x / threads * room»", "0", "groups share memory"),
    (
        "ctc_loss_gradient.cuh",
        "«first >= 0 && first + Packet<X>::kSize <= C»",
        "first >= 0 && first < C",
        "vector beyond the row",
    ),
    ("ctc_loss_gradient.cuh", "«i < room»; i += threads", "i <= room", "<= for <"),
    (
        "ctc_loss_gradient.cuh",
        "«first + k < C») row[first + k]",
        "first + k <= C",
        "<= for <",
    ),
    # ---- memory and launches
    (
        "ctc_loss_layout.cuh",
        "plan->segment = «round_up(segment, kBlockFrames)»;",
        "segment",
        "sums in the place of emissions that are still needed",
    ),
    (
        "ctc_loss_layout.cuh",
        "«call.plan.frames * (row.entries_at - call.saved.rows[first_row].entries_at)»",
        "call.plan.frames * row.entries_at",
        "rows of a later turn beyond the buffer",
    ),
    (
        "ctc_loss.cu",
        "«(frames * rows + per_block - 1) / per_block»",
        "frames * rows / per_block",
        "the last block is missing",
    ),
    (
        "ctc_loss.cu",
        "dim3(unsigned(64 * plan.warps)), «size_t(plan.shared_bytes)»",
        "size_t(plan.shared_bytes / 2)",
        "half the shared memory",
    ),
    # ---- the beam search: a frame's best classes
    (
        "beam_search_frames.cuh",
        "«held + __popc(votes & ((1u << threadIdx.x % 32) - 1))»",
        "held + __popc(votes & ((2u << threadIdx.x % 32) - 1))",
        "index off by one",
    ),
    (
        "beam_search_frames.cuh",
        "if («warp < int(threadIdx.x) / 32») place",
        "warp <= int(threadIdx.x) / 32",
        "<= for <",
    ),
    (
        "beam_search_frames.cuh",
        "if («held + kAhead * threads > room») settle();",
        "held > room",
        "beyond a shared array",
    ),
    (
        "beam_search_frames.cuh",
        "const bool wants = «x > least»",
        "x > least + 8",
        "later classes are lost",
    ),
    ("beam_search_frames.cuh", "step = run / 2; «step > 0»", "step > 1", "unsorted"),
    ("beam_search_frames.cuh", "«index[a] < index[b]»", "index[a] > index[b]", "ties"),
    ("beam_search_frames.cuh", "«k - (k > blank_at)»", "k", "a hole where the blank was"),
    # ---- and its beam
    (
        "beam_search_team.cuh",
        "if («w < warp()») before",
        "w <= warp()",
        "<= for <",
    ),
    (
        "beam_search_team.cuh",
        "return «(1u << threadIdx.x % 32) - 1»",
        "1u << threadIdx.x % 32",
        "lanes counted wrongly",
    ),
    (
        "beam_search_beam.cuh",
        "(«repeats ? s.blank : s.total»)[parent_slot]",
        "repeats ? s.total : s.blank",
        "the wrong mass",
    ),
    (
        "beam_search_slots.cuh",
        "if («seen == kFreeNode || seen == key»)",
        "seen == kFreeNode",
        "a node twice",
    ),
    (
        "beam_search_beam.cuh",
        "if (s.last[child] == token) return «true»",
        "false",
        "a prefix twice",
    ),
    (
        "beam_search_beam.cuh",
        "if («fresh + threads > Shared::kRoom») tighten();",
        "fresh > Shared::kRoom",
        "beyond a shared array",
    ),
    ("beam_search_beam.cuh", "top = «middle - 1»;", "middle - 2", "bisection"),
    (
        "beam_search_beam.cuh",
        "B - count_from(N::value(«low + 1»))",
        "low",
        "too many leave",
    ),
    (
        "beam_search_beam.cuh",
        "if («before < winners») continue;",
        "before <= winners",
        "<= for <",
    ),
    (
        "beam_search_beam.cuh",
        "if (s.entered[i] == parent) parent_slot = «s.chosen[i]»;",
        "-1",
        "children of what comes back",
    ),
    (
        "beam_search_beam.cuh",
        "«s.node[parent_slot] != parent») parent_slot = -1",
        "s.node[parent_slot] == -1",
        "a stranger for a parent",
    ),
    (
        "beam_search.cu",
        "«records + (t + 1) % 2 * call.record_bytes», record",
        "records",
        "no second buffer",
    ),
    (
        "beam_search.cu",
        "«last == ahead_of ? ahead : row[last]»",
        "ahead",
        "another class's score",
    ),
    # ---- and its times
    ("beam_search_times.cuh", "«rank + begins - 1»", "rank + begins", "index off by one"),
    (
        "beam_search_times.cuh",
        "if (leaves(«i - 1»)) state",
        "i",
        "index off by one",
    ),
    (
        "beam_search_times.cuh",
        "if («labels[i - 1] == wanted») posterior",
        "labels[i - 1] != wanted",
        "the wrong class",
    ),
    (
        "beam_search_times.cuh",
        "call.states + «r * 4 * call.pairs»",
        "r * 3 * call.pairs",
        "results share memory",
    ),
)

# (file, text of the line before the barrier, why nothing changes without it)
EQUIVALENT = (
    (
        "ctc_loss_lattice_general.cuh",
        "int(threadIdx.x / 32), int(blockDim.x / 32));",
        "a next segment begins with copies, whose barriers come before it writes to `kept`",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "normalised(add(lattice.states.blanks[row.labels]",
        "the barriers of sum_normaliser's reduction come before the states are written again",
    ),
    (
        "beam_search.cu",
        "where the beam has died, a copy is under way still",
        "the copy goes where nobody looks any more; a block waits for its own before it ends",
    ),
)
