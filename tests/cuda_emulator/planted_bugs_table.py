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
    (
        "ctc_loss_prepare.cuh",
        "groups += row_groups(call.plan, labels)",
        "groups += row_groups(call.plan, labels) - 1",
        "rows share memory",
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
        "    }\n    emissions[emission_place(row.entries, t, entry)]",
        "    }\n    emissions[emission_place(row.entries, t, entry + 1)]",
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
    (
        "ctc_loss_lattice.cuh",
        "if (has_states) *lowest_at = lowest;",
        "",
        "states relative to nothing",
    ),
    (
        "ctc_loss_lattice.cuh",
        "next_lowest = lowest_at[kReverse ? -kGroupLanes : kGroupLanes]",
        "next_lowest = lowest_at[0]",
        "states relative to another block",
    ),
    (
        "ctc_loss_lattice.cuh",
        "valid[k] ? l[k].e : lowest",
        "lowest",
        "exponents are lost",
    ),
    (
        "ctc_loss_lattice.cuh",
        "near = near && label[k].e >= lowest",
        "near = true",
        "states out of the near range",
    ),
    (
        "ctc_loss_lattice.cuh",
        "Exponent signs = y_blank[run].frame[at]",
        "Exponent signs = 0",
        "a blank out of the near range",
    ),
    (
        "ctc_loss_lattice.cuh",
        "row.labels > call.plan.longest ||",
        "row.labels >= call.plan.longest ||",
        ">= for >",
    ),
    # ---- packed numbers
    (
        "ctc_loss_numbers.cuh",
        "const auto from = lowest + kMantissaRoom;",
        "const auto from = lowest;",
        "far states too small",
    ),
    (
        "ctc_loss_numbers.cuh",
        "(Exponent(1) << (dropped - 1));\n  return",
        "(Exponent(1) << (dropped + 1));\n  return",
        "rounded at the wrong bit",
    ),
    # ---- a barrier per frame
    (
        "ctc_loss_lattice_general.cuh",
        "slot(row.long_at - call.saved.rows[first_row].long_at)",
        "slot(0)",
        "rows share memory",
    ),
    (
        "ctc_loss_lattice_general.cuh",
        "row.labels <= call.plan.longest ||",
        "",
        "a row taken by both kernels",
    ),
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
        "lane % kGroupLanes * lane_stride",
        "lane % kGroupLanes * 1",
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
    # ---- memory and launches
    (
        "ctc_loss_layout.cuh",
        "plan->segment = round_up(segment, kBlockFrames);",
        "plan->segment = segment;",
        "sums in the place of emissions that are still needed",
    ),
    (
        "ctc_loss_layout.cuh",
        "plan.frames * (row.entries_at - call.saved.rows[first_row].entries_at)",
        "plan.frames * row.entries_at",
        "rows of a later turn beyond the buffer",
    ),
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
)
