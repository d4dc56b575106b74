"""The mistakes that `planted_bugs.py` plants besides missing barriers."""

# (file in csrc/cuda, text that occurs once in it, what takes its place, what is wrong then)
PLANTED = (
    # ---- a block's and a warp's reductions
    (
        "ctc_loss_block.cuh",
        "step = lanes / 2; step > 0",
        "step = lanes / 2; step > 1",
        "loop ends early",
    ),
    (
        "ctc_loss_block.cuh",
        "__shfl_xor_sync(kAllLanes, value, step)",
        "__shfl_xor_sync(0xffffu, value, step)",
        "mask",
    ),
    (
        "ctc_loss_block.cuh",
        "__shfl_xor_sync(kAllLanes, value, step)",
        "__shfl_down_sync(kAllLanes, value, step)",
        "shuffle",
    ),
    (
        "ctc_loss_block.cuh",
        "shared[threadIdx.x / 32] = value",
        "shared[threadIdx.x / 32 + 1] = value",
        "index off by one",
    ),
    (
        "ctc_loss_block.cuh",
        "warp < blockDim.x / 32; ++warp",
        "warp <= blockDim.x / 32; ++warp",
        "<= for <",
    ),
    # ---- prepare
    (
        "ctc_loss_prepare.cuh",
        "rank += pair_class[k] <= own",
        "rank += pair_class[k] < own",
        "equal classes on one rank",
    ),
    (
        "ctc_loss_prepare.cuh",
        "for (int k = i + 1; k < pairs; ++k)",
        "for (int k = i + 1; k <= pairs; ++k)",
        "<= for <",
    ),
    (
        "ctc_loss_prepare.cuh",
        "pair_class[i + 1] = inside",
        "pair_class[i] = inside",
        "index off by one",
    ),
    (
        "ctc_loss_prepare.cuh",
        "label >= 0 && label < p.shape.C",
        "label >= 0 && label <= p.shape.C",
        "<= for <",
    ),
    (
        "ctc_loss_prepare.cuh",
        "__ballot_sync(kAllLanes, begins)",
        "__ballot_sync(0x7fffffffu, begins)",
        "mask",
    ),
    (
        "ctc_loss_prepare.cuh",
        "kAllLanes >> (31 - lane)",
        "kAllLanes >> lane",
        "lanes counted from the wrong end",
    ),
    ("ctc_loss_prepare.cuh", "if (w < warp) entry +=", "if (w <= warp) entry +=", "<= for <"),
    (
        "ctc_loss_prepare.cuh",
        "segments[entries] = pairs;",
        "segments[entries] = pairs - 1;",
        "end off by one",
    ),
    (
        "ctc_loss_prepare.cuh",
        "row.frames >= row.labels + repeats",
        "row.frames > row.labels + repeats",
        "> for >=",
    ),
    # ---- one pass over the scores
    (
        "ctc_loss_rows.cuh",
        "first >= 0 && first + Packet<X>::kSize <= C",
        "first >= 0 && first < C",
        "vector beyond the row",
    ),
    (
        "ctc_loss_rows.cuh",
        "first + k >= 0 && first + k < C ? to",
        "first + k >= 0 && first + k <= C ? to",
        "<= for <",
    ),
    (
        "ctc_loss_rows.cuh",
        "emission_place(row.entries, t, entry)] = emission",
        "emission_place(row.entries, t, entry + 1)] = emission",
        "index off by one",
    ),
    (
        "ctc_loss_rows.cuh",
        "const int t = int(item / rows);\n  const int64_t r = item % rows",
        "const int t = int(item / rows);\n  const int64_t r = item % (rows + 1)",
        "row off by one",
    ),
    # ---- the lattice
    (
        "ctc_loss_lattice.cuh",
        "__shfl_up_sync(kAllLanes, q[K - 1].m, 1)",
        "__shfl_up_sync(kAllLanes, q[K - 1].m, 2)",
        "lane offset",
    ),
    (
        "ctc_loss_lattice.cuh",
        "__shfl_up_sync(kAllLanes, q[K - 1].e, 1)",
        "__shfl_down_sync(kAllLanes, q[K - 1].e, 1)",
        "shuffle",
    ),
    (
        "ctc_loss_lattice.cuh",
        "__shfl_up_sync(kAllLanes, q[K - 1].m, 1)",
        "__shfl_up_sync(0x0fffffffu, q[K - 1].m, 1)",
        "mask",
    ),
    ("ctc_loss_lattice.cuh", "if (lane == 31) edge_out", "if (lane == 30) edge_out", "wrong lane"),
    (
        "ctc_loss_lattice.cuh",
        "entering = edge_in[turn * kBlockFrames + f]",
        "entering = edge_in[f]",
        "no second buffer",
    ),
    (
        "ctc_loss_lattice.cuh",
        "edge_out[turn * kBlockFrames + f]",
        "edge_out[f]",
        "no second buffer",
    ),
    (
        "ctc_loss_lattice.cuh",
        "rest + warps_needed - 1",
        "rest + warps_needed - 2",
        "a step too few",
    ),
    (
        "ctc_loss_lattice.cuh",
        "warp * 32 * K < labels + K",
        "warp * 32 * K < labels - 32 * K",
        "a warp too few",
    ),
    (
        "ctc_loss_lattice.cuh",
        "pair_class[label] != pair_class[next]",
        "pair_class[label] == pair_class[next]",
        "repeats",
    ),
    (
        "ctc_loss_lattice.cuh",
        "states.state[kReverse ? K - 1 - k : k]",
        "states.state[k]",
        "order within a lane",
    ),
    ("ctc_loss_lattice.cuh", "step = 16; step > 0", "step = 16; step > 1", "loop ends early"),
    (
        "ctc_loss_lattice.cuh",
        "shared[threadIdx.x / 32] = sum",
        "shared[threadIdx.x / 32 + 2 * kMostWarps] = sum",
        "beyond a shared array",
    ),
    ("ctc_loss_lattice.cuh", "b[k] = normalised(b[k]);", "", "mantissas grow"),
    (
        "ctc_loss_lattice.cuh",
        "blank <= labels) blanks[blank] = b[k]",
        "blank <= labels + 1) blanks[blank] = b[k]",
        "<= and one more",
    ),
    # ---- a barrier per frame
    (
        "ctc_loss_lattice_general.cuh",
        "if (leaves(i - 1)) state",
        "if (leaves(i)) state",
        "index off by one",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "blank_before = i < row.labels ?",
        "blank_before = i <= row.labels ?",
        "<= for <",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "t % segment_frames == 0",
        "t % segment_frames == 1",
        "checkpoint a frame late",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "next = {memory + 2 * width, memory + 3 * width}",
        "next = {memory + 2 * width, memory + width}",
        "buffers overlap",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "i == 0 ? Scalar(0) : plain",
        "i == 1 ? Scalar(0) : plain",
        "index off by one",
    ),
    # ---- posterior sums, gradient and losses
    (
        "ctc_loss_sums.cuh",
        "lane % kGroupLanes * 2 * pairs_per_lane",
        "lane % kGroupLanes * pairs_per_lane",
        "layout",
    ),
    ("ctc_loss_sums.cuh", "rank < to; ++rank", "rank + 1 < to; ++rank", "loop ends early"),
    (
        "ctc_loss_sums.cuh",
        "segments[entry], segments[entry + 1]",
        "segments[entry], segments[entry]",
        "index off by one",
    ),
    (
        "ctc_loss_sums.cuh",
        "frame < frames; frame += warps",
        "frame + 1 < frames; frame += warps",
        "loop ends early",
    ),
    (
        "ctc_loss_gradient.cuh",
        "at >= 0 && at < room) subtrahend",
        "at >= 0 && at <= room) subtrahend",
        "<= for <",
    ),
    ("ctc_loss_gradient.cuh", "threadIdx.x / threads * room", "0", "groups share memory"),
    (
        "ctc_loss_gradient.cuh",
        "first >= 0 && first + Packet<X>::kSize <= C",
        "first >= 0 && first < C",
        "vector beyond the row",
    ),
    ("ctc_loss_gradient.cuh", "i < room; i += threads", "i <= room; i += threads", "<= for <"),
    (
        "ctc_loss_gradient.cuh",
        "first + k < C) row[first + k]",
        "first + k <= C) row[first + k]",
        "<= for <",
    ),
    # ---- launches
    (
        "ctc_loss.cu",
        "(frames * rows + per_block - 1) / per_block",
        "frames * rows / per_block",
        "the last block is missing",
    ),
    (
        "ctc_loss.cu",
        "dim3(unsigned(64 * plan.warps)), size_t(plan.shared_bytes)",
        "dim3(unsigned(64 * plan.warps)), size_t(plan.shared_bytes / 2)",
        "half the shared memory",
    ),
    # ---- the beam search: a frame's best classes
    (
        "beam_search_frames.cuh",
        "held + __popc(votes & ((1u << threadIdx.x % 32) - 1))",
        "held + __popc(votes & ((2u << threadIdx.x % 32) - 1))",
        "index off by one",
    ),
    (
        "beam_search_frames.cuh",
        "if (warp < int(threadIdx.x) / 32) place",
        "if (warp <= int(threadIdx.x) / 32) place",
        "<= for <",
    ),
    (
        "beam_search_frames.cuh",
        "if (held + kAhead * threads > room) settle();",
        "if (held > room) settle();",
        "beyond a shared array",
    ),
    (
        "beam_search_frames.cuh",
        "const bool wants = x > least",
        "const bool wants = x > least + 8",
        "later classes are lost",
    ),
    ("beam_search_frames.cuh", "step = run / 2; step > 0", "step = run / 2; step > 1", "unsorted"),
    ("beam_search_frames.cuh", "index[a] < index[b]", "index[a] > index[b]", "ties"),
    ("beam_search_frames.cuh", "k - (k > blank_at)", "k", "a hole where the blank was"),
    # ---- and its beam
    (
        "beam_search_team.cuh",
        "if (w < warp()) before",
        "if (w <= warp()) before",
        "<= for <",
    ),
    (
        "beam_search_team.cuh",
        "return (1u << threadIdx.x % 32) - 1",
        "return 1u << threadIdx.x % 32",
        "lanes counted wrongly",
    ),
    (
        "beam_search_beam.cuh",
        "(repeats ? s.blank : s.total)[parent_slot]",
        "(repeats ? s.total : s.blank)[parent_slot]",
        "the wrong mass",
    ),
    (
        "beam_search_slots.cuh",
        "if (seen == kFreeNode || seen == key)",
        "if (seen == kFreeNode)",
        "a node twice",
    ),
    (
        "beam_search_beam.cuh",
        "if (s.last[child] == token) return true",
        "if (s.last[child] == token) return false",
        "a prefix twice",
    ),
    (
        "beam_search_beam.cuh",
        "if (fresh + threads > Shared::kRoom) tighten();",
        "if (fresh > Shared::kRoom) tighten();",
        "beyond a shared array",
    ),
    ("beam_search_beam.cuh", "top = middle - 1;", "top = middle - 2;", "bisection"),
    (
        "beam_search_beam.cuh",
        "B - count_from(N::value(low + 1))",
        "B - count_from(N::value(low))",
        "too many leave",
    ),
    (
        "beam_search_beam.cuh",
        "if (before < winners) continue;",
        "if (before <= winners) continue;",
        "<= for <",
    ),
    (
        "beam_search_beam.cuh",
        "if (s.entered[i] == parent) parent_slot = s.chosen[i];",
        "if (s.entered[i] == parent) parent_slot = -1;",
        "children of what comes back",
    ),
    (
        "beam_search_beam.cuh",
        "s.node[parent_slot] != parent) parent_slot = -1",
        "s.node[parent_slot] == -1) parent_slot = -1",
        "a stranger for a parent",
    ),
    (
        "beam_search.cu",
        "records + (t + 1) % 2 * call.record_bytes, record",
        "records, record",
        "no second buffer",
    ),
    (
        "beam_search.cu",
        "last == ahead_of ? ahead : row[last]",
        "ahead",
        "another class's score",
    ),
    # ---- and its times
    ("beam_search_times.cuh", "rank + begins - 1", "rank + begins", "index off by one"),
    (
        "beam_search_times.cuh",
        "if (leaves(i - 1)) state",
        "if (leaves(i)) state",
        "index off by one",
    ),
    (
        "beam_search_times.cuh",
        "if (labels[i - 1] == wanted) posterior",
        "if (labels[i - 1] != wanted) posterior",
        "the wrong class",
    ),
    (
        "beam_search_times.cuh",
        "call.states + r * 4 * call.pairs",
        "call.states + r * 3 * call.pairs",
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
