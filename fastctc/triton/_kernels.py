"""The device code of spectrogram normalisation; `fastctc/_norm.py` says what it computes.

A canonical spectrogram is seen as utterances n, frames t and columns j, one column for each band,
electrode and bin. Four of the kernels walk over tiles of BT frames and BJ columns of one utterance,
one tile per program, so that all of its loads are on their way before the first is needed. Two
merge what the tiles report, in an order that depends on shapes alone.

A tile is summed relative to its own mean in the type of the arithmetic (float32, or float64 for
float64), and tiles are merged in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

_ALWAYS_GENERAL = ["T", "J", "chunks", "rows"]


@triton.jit
def _clamped(length, T):
    """A length, brought into [0, T]."""
    return tl.minimum(tl.maximum(length, 0), T).to(tl.int32)


@triton.jit
def _place(program, T, J, BT: tl.constexpr, BJ: tl.constexpr):
    """A program's tile: utterance, first frame, columns, and its row among the chunks of all."""
    blocks = tl.cdiv(J, BJ)
    chunks = tl.cdiv(T, BT)
    row = program // blocks
    j = program % blocks * BJ + tl.arange(0, BJ)
    return row // chunks, row % chunks * BT, j, row


@triton.jit
def _offsets(
    n, t0, j, E, F, sn, st, sb, se, sf,
    FLAT: tl.constexpr, WIDE: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """A tile's place in a tensor, in elements: its first value of all columns, and those within.

    FLAT: a single stride leads from each column to the next. WIDE: offsets within a tile need 64
    bits; that of the tile always gets them.
    """
    t = tl.arange(0, BT)
    if WIDE:
        t = t.to(tl.int64)
        j = j.to(tl.int64)
    if FLAT:
        # With a division in the way the compiler would not see that columns are adjacent.
        columns = j * sf
    else:
        channel = j // F
        columns = (channel // E) * sb + (channel % E) * se + (j % F) * sf
    return n.to(tl.int64) * sn + t0.to(tl.int64) * st, t[:, None] * st + columns[None, :]


@triton.jit
def _widened(v):
    """A tile in the type of the arithmetic."""
    if v.dtype != tl.float64:
        v = v.to(tl.float32)
    return v


@triton.jit
def _compressed(v, LOG: tl.constexpr, LOG_EPS: tl.constexpr):
    if LOG == 1:
        # The quotient makes up for the rounding of 1 + v.
        u = 1.0 + v
        back = u - 1.0
        same = (back == v) | (back == 0.0)
        quotient = tl.where(same, 1.0, v / tl.where(same, 1.0, back))
        v = tl.where(back == 0.0, v, tl.log(u) * quotient)
    elif LOG == 2:
        v = tl.log(v + LOG_EPS) * 0.43429448190325182765
    return v


@triton.jit
def _compressed_slope(v, LOG: tl.constexpr, LOG_EPS: tl.constexpr):
    """What compression multiplies a gradient by."""
    if LOG == 1:
        slope = 1.0 / (1.0 + v)
    elif LOG == 2:
        slope = 0.43429448190325182765 / (v + LOG_EPS)
    else:
        slope = tl.full(v.shape, 1.0, v.dtype)
    return slope


@triton.jit
def _group(n, j, J, W, PER_UTTERANCE: tl.constexpr):
    """The statistic of each column: W neighbouring columns share one."""
    g = j // W
    if PER_UTTERANCE:
        g += n * (J // W)
    return g


@triton.jit
def _inverse_deviation(var, at, live, EPS: tl.constexpr):
    spread = tl.load(var + at, mask=live, other=1.0) + EPS
    return tl.where(spread == 0.0, 0.0, 1.0 / tl.sqrt(tl.where(spread == 0.0, 1.0, spread)))


@triton.jit
def _standardised(v, mean, at, live, scale):
    """(v - mean) * scale, with the mean in two parts: it may be far above the deviation."""
    middle = tl.load(mean + at, mask=live, other=0.0)
    high = middle.to(v.dtype)
    low = (middle - high.to(tl.float64)).to(v.dtype)
    return (v - high[None, :] - low[None, :]) * scale.to(v.dtype)[None, :]


@triton.jit
def _kept(
    valid, masks, n, t, j, live, J, F,
    MASKS: tl.constexpr, TIME_MASKS: tl.constexpr, PER_CHANNEL: tl.constexpr,
):  # fmt: skip
    """Those of the valid values that no mask covers."""
    row = j * 0 + n
    if PER_CHANNEL:
        row = n * (J // F) + j // F
    row = row.to(tl.int64) * (2 * MASKS)
    for m in tl.static_range(MASKS):
        start = tl.load(masks + (row + 2 * m), mask=live, other=0)
        end = tl.load(masks + (row + (2 * m + 1)), mask=live, other=0)
        if m < TIME_MASKS:
            valid &= (t[:, None] < start[None, :]) | (t[:, None] >= end[None, :])
        else:
            valid &= ((j % F < start) | (j % F >= end))[None, :]
    return valid


@triton.jit
def draw_masks_kernel(
    seed, lengths, masks, T, F, channels, rows,
    MASKS: tl.constexpr, TIME_MASKS: tl.constexpr, TIME_WIDTH: tl.constexpr,
    TIME_SHARE: tl.constexpr, FREQ_WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < rows * MASKS
    row = at // MASKS
    m = at % MASKS
    frames = _clamped(tl.load(lengths + row // channels, mask=live, other=0), T).to(tl.int64)
    w0, w1, _, _ = tl.philox(tl.load(seed), m, row, m * 0, m * 0)
    limit = tl.minimum((frames * TIME_SHARE) >> 16, TIME_WIDTH)
    size = tl.where(m < TIME_MASKS, frames, F)
    limit = tl.where(m < TIME_MASKS, limit, tl.minimum(FREQ_WIDTH, F)).to(tl.int64)
    width = (w0.to(tl.int64) * (limit + 1)) >> 32
    start = (w1.to(tl.int64) * (size - width + 1)) >> 32
    place = masks + at.to(tl.int64) * 2
    tl.store(place, start.to(tl.int32), mask=live)
    tl.store(place + 1, (start + width).to(tl.int32), mask=live)


@triton.jit
def _snapped(mean, values, there):
    """The mean of each column of `values`, or the least of them where that is as good.

    So the mean of equal values is that value, and their variance exactly 0.
    """
    least = tl.min(tl.where(there, values, float("inf")), 0)
    close = tl.abs(mean) * (1e-14 if values.dtype == tl.float64 else 1e-6)
    return tl.where(tl.abs(mean - least) <= close, least, mean)


@triton.jit(do_not_specialize=_ALWAYS_GENERAL)
def tile_moments_kernel(
    x, lengths, tiles, T, J, E, F, rows, xn, xt, xb, xe, xf,
    LOG: tl.constexpr, LOG_EPS: tl.constexpr,
    X_FLAT: tl.constexpr, WIDE: tl.constexpr, BT: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Three planes of `tiles`: a tile's rough mean, what that lacks, and squared deviations."""
    n, t0, j, row = _place(tl.program_id(0), T, J, BT, BJ)
    count = tl.minimum(_clamped(tl.load(lengths + n), T) - t0, BT)
    if count > 0:
        live = j < J
        valid = (tl.arange(0, BT) < count)[:, None] & live[None, :]
        first, within = _offsets(n, t0, j, E, F, xn, xt, xb, xe, xf, X_FLAT, WIDE, BT)
        v = tl.load(x + first + within, mask=valid, other=0.0)
        v = tl.where(valid, _compressed(_widened(v), LOG, LOG_EPS), 0.0)
        c = count.to(v.dtype)
        rough = _snapped(tl.sum(v, 0) / c, v, valid)
        d = tl.where(valid, v - rough[None, :], 0.0)
        rest = tl.sum(d, 0) / c
        plane = rows.to(tl.int64) * J
        at = tiles + row.to(tl.int64) * J + j
        tl.store(at, rough, mask=live)
        tl.store(at + plane, rest, mask=live)
        tl.store(at + 2 * plane, tl.sum(d * d, 0) - c * rest * rest, mask=live)


@triton.jit
def _merged(rows, chunks, J, W, BG: tl.constexpr, PER_UTTERANCE: tl.constexpr):
    """What a program merges: first row of reports, their number, columns of statistics, place."""
    groups = J // W
    blocks = tl.cdiv(groups, BG)
    part = tl.program_id(0) // blocks
    g = tl.program_id(0) % blocks * BG + tl.arange(0, BG)
    if PER_UTTERANCE:
        rows = chunks
    return part * chunks, rows, g, part * groups + g


@triton.jit
def _reports(q, first, rows, chunks, lengths, g, T, J, W, BT: tl.constexpr):
    """Where the q-th report on each statistic is, and how many frames it covers (0: no report)."""
    r = first + q // W
    inside = q // W < rows
    frames = _clamped(tl.load(lengths + r // chunks, mask=inside, other=0), T)
    count = tl.minimum(tl.maximum(frames - r % chunks * BT, 0), BT)
    return r.to(tl.int64)[:, None] * J + (g[None, :] * W + (q % W)[:, None]), count


@triton.jit(do_not_specialize=_ALWAYS_GENERAL)
def merge_moments_kernel(
    tiles, lengths, mean, var, T, J, W, rows, chunks,
    PER_UTTERANCE: tl.constexpr, BT: tl.constexpr, BQ: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    first, mine, g, at = _merged(rows, chunks, J, W, BG, PER_UTTERANCE)
    live = g < J // W
    plane = rows.to(tl.int64) * J
    n = tl.zeros((BG,), tl.float64)
    middle = tl.zeros((BG,), tl.float64)
    square = tl.zeros((BG,), tl.float64)
    start = 0
    while start < mine * W:
        q = start + tl.arange(0, BQ)
        place, count = _reports(q, first, mine, chunks, lengths, g, T, J, W, BT)
        there = (count > 0)[:, None] & live[None, :]
        means = tl.load(tiles + place, mask=there, other=0.0).to(tl.float64)
        means += tl.load(tiles + plane + place, mask=there, other=0.0).to(tl.float64)
        squares = tl.load(tiles + 2 * plane + place, mask=there, other=0.0).to(tl.float64)
        c = count.to(tl.float64)
        here = tl.sum(c, 0)
        centre = tl.sum(c[:, None] * means, 0) / tl.maximum(here, 1.0)
        centre = _snapped(centre, means, there)
        d = tl.where(there, means - centre[None, :], 0.0)
        # Chan, Golub and LeVeque 1983: the moments of two samples put together.
        share = here / tl.maximum(n + here, 1.0)
        step = centre - middle
        square += tl.sum(squares + c[:, None] * d * d, 0) + step * step * n * share
        middle += step * share
        n += here
        start += BQ
    tl.store(mean + at, middle, mask=live)
    tl.store(var + at, square / tl.maximum(n, 1.0), mask=live)


@triton.jit(do_not_specialize=_ALWAYS_GENERAL)
def normalise_kernel(
    x, lengths, mean, var, weight, bias, masks, y, T, J, E, F, W,
    xn, xt, xb, xe, xf, yn, yt, yb, ye, yf,
    LOG: tl.constexpr, LOG_EPS: tl.constexpr, EPS: tl.constexpr, PER_UTTERANCE: tl.constexpr,
    AFFINE: tl.constexpr, MASKS: tl.constexpr, TIME_MASKS: tl.constexpr, PER_CHANNEL: tl.constexpr,
    X_FLAT: tl.constexpr, Y_FLAT: tl.constexpr, Y_LIKE_X: tl.constexpr, WIDE: tl.constexpr,
    BT: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    # From the last tile to the first: the end of x is what the pass before left in the L2 cache.
    n, t0, j, _ = _place(tl.num_programs(0) - 1 - tl.program_id(0), T, J, BT, BJ)
    live = j < J
    t = t0 + tl.arange(0, BT)
    frames = _clamped(tl.load(lengths + n), T)
    written = (t < T)[:, None] & live[None, :]
    if t0 < frames:
        first, within = _offsets(n, t0, j, E, F, xn, xt, xb, xe, xf, X_FLAT, WIDE, BT)
        valid = (t < frames)[:, None] & live[None, :]
        v = tl.load(x + first + within, mask=valid, other=0.0)
        v = _compressed(_widened(v), LOG, LOG_EPS)
        at = _group(n, j, J, W, PER_UTTERANCE)
        h = _standardised(v, mean, at, live, _inverse_deviation(var, at, live, EPS))
        if AFFINE:
            h = h * tl.load(weight + j // W, mask=live, other=0.0)[None, :]
            h = h + tl.load(bias + j // W, mask=live, other=0.0)[None, :]
        kept = _kept(valid, masks, n, t, j, live, J, F, MASKS, TIME_MASKS, PER_CHANNEL)
        if not Y_LIKE_X:
            first, within = _offsets(n, t0, j, E, F, yn, yt, yb, ye, yf, Y_FLAT, WIDE, BT)
        tl.store(y + first + within, tl.where(kept, h, 0.0).to(y.dtype.element_ty), mask=written)
    else:
        first, within = _offsets(n, t0, j, E, F, yn, yt, yb, ye, yf, Y_FLAT, WIDE, BT)
        tl.store(y + first + within, tl.zeros((BT, BJ), y.dtype.element_ty), mask=written)


@triton.jit(do_not_specialize=_ALWAYS_GENERAL)
def tile_sums_kernel(
    grad, x, lengths, mean, var, masks, tiles, T, J, E, F, W, rows,
    gn, gt, gb, ge, gf, xn, xt, xb, xe, xf,
    LOG: tl.constexpr, LOG_EPS: tl.constexpr, EPS: tl.constexpr, PER_UTTERANCE: tl.constexpr,
    MASKS: tl.constexpr, TIME_MASKS: tl.constexpr, PER_CHANNEL: tl.constexpr,
    G_FLAT: tl.constexpr, G_LIKE_X: tl.constexpr, X_FLAT: tl.constexpr, WIDE: tl.constexpr,
    BT: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """Two planes of `tiles`: a tile's sums of g and of g * h."""
    n, t0, j, row = _place(tl.program_id(0), T, J, BT, BJ)
    frames = _clamped(tl.load(lengths + n), T)
    if t0 < frames:
        live = j < J
        t = t0 + tl.arange(0, BT)
        valid = (t < frames)[:, None] & live[None, :]
        kept = _kept(valid, masks, n, t, j, live, J, F, MASKS, TIME_MASKS, PER_CHANNEL)
        first, within = _offsets(n, t0, j, E, F, xn, xt, xb, xe, xf, X_FLAT, WIDE, BT)
        v = tl.load(x + first + within, mask=kept, other=0.0)
        if not G_LIKE_X:
            first, within = _offsets(n, t0, j, E, F, gn, gt, gb, ge, gf, G_FLAT, WIDE, BT)
        g = _widened(tl.load(grad + first + within, mask=kept, other=0.0))
        v = _compressed(_widened(v), LOG, LOG_EPS)
        at = _group(n, j, J, W, PER_UTTERANCE)
        h = _standardised(v, mean, at, live, _inverse_deviation(var, at, live, EPS))
        place = tiles + row.to(tl.int64) * J + j
        tl.store(place, tl.sum(g, 0), mask=live)
        dot = tl.sum(tl.where(kept, g * h, 0.0), 0)
        tl.store(place + rows.to(tl.int64) * J, dot, mask=live)


@triton.jit(do_not_specialize=_ALWAYS_GENERAL)
def merge_sums_kernel(
    tiles, lengths, sums, dots, mean_sums, mean_dots, T, J, W, rows, chunks,
    PER_UTTERANCE: tl.constexpr, BT: tl.constexpr, BQ: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    first, mine, g, at = _merged(rows, chunks, J, W, BG, PER_UTTERANCE)
    live = g < J // W
    plane = rows.to(tl.int64) * J
    n = tl.zeros((BG,), tl.float64)
    total = tl.zeros((BG,), tl.float64)
    dot = tl.zeros((BG,), tl.float64)
    start = 0
    while start < mine * W:
        q = start + tl.arange(0, BQ)
        place, count = _reports(q, first, mine, chunks, lengths, g, T, J, W, BT)
        there = (count > 0)[:, None] & live[None, :]
        total += tl.sum(tl.load(tiles + place, mask=there, other=0.0).to(tl.float64), 0)
        dot += tl.sum(tl.load(tiles + plane + place, mask=there, other=0.0).to(tl.float64), 0)
        n += tl.sum(count.to(tl.float64), 0)
        start += BQ
    n = tl.maximum(n, 1.0)
    tl.store(sums + at, total, mask=live)
    tl.store(dots + at, dot, mask=live)
    tl.store(mean_sums + at, total / n, mask=live)
    tl.store(mean_dots + at, dot / n, mask=live)


@triton.jit(do_not_specialize=_ALWAYS_GENERAL)
def input_gradient_kernel(
    grad, x, lengths, mean, var, weight, masks, mean_sums, mean_dots, dx, T, J, E, F, W,
    gn, gt, gb, ge, gf, xn, xt, xb, xe, xf, dn, dt, db, de, df,
    LOG: tl.constexpr, LOG_EPS: tl.constexpr, EPS: tl.constexpr, PER_UTTERANCE: tl.constexpr,
    AFFINE: tl.constexpr, OWN: tl.constexpr,
    MASKS: tl.constexpr, TIME_MASKS: tl.constexpr, PER_CHANNEL: tl.constexpr,
    G_FLAT: tl.constexpr, G_LIKE_X: tl.constexpr, X_FLAT: tl.constexpr, D_FLAT: tl.constexpr,
    D_LIKE_X: tl.constexpr, WIDE: tl.constexpr,
    BT: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """OWN: the statistics are those of x, and depend on it."""
    n, t0, j, _ = _place(tl.num_programs(0) - 1 - tl.program_id(0), T, J, BT, BJ)
    live = j < J
    t = t0 + tl.arange(0, BT)
    frames = _clamped(tl.load(lengths + n), T)
    written = (t < T)[:, None] & live[None, :]
    if t0 < frames:
        first, within = _offsets(n, t0, j, E, F, xn, xt, xb, xe, xf, X_FLAT, WIDE, BT)
        valid = (t < frames)[:, None] & live[None, :]
        kept = _kept(valid, masks, n, t, j, live, J, F, MASKS, TIME_MASKS, PER_CHANNEL)
        v = _widened(tl.load(x + first + within, mask=valid, other=0.0))
        there, apart = first, within
        if not G_LIKE_X:
            there, apart = _offsets(n, t0, j, E, F, gn, gt, gb, ge, gf, G_FLAT, WIDE, BT)
        g = _widened(tl.load(grad + there + apart, mask=kept, other=0.0))
        at = _group(n, j, J, W, PER_UTTERANCE)
        scale = _inverse_deviation(var, at, live, EPS)
        if OWN:
            h = _standardised(_compressed(v, LOG, LOG_EPS), mean, at, live, scale)
            g -= tl.load(mean_sums + at, mask=live, other=0.0).to(g.dtype)[None, :]
            g -= h * tl.load(mean_dots + at, mask=live, other=0.0).to(g.dtype)[None, :]
        if AFFINE:
            scale *= tl.load(weight + j // W, mask=live, other=0.0).to(tl.float64)
        g *= scale.to(g.dtype)[None, :] * _compressed_slope(v, LOG, LOG_EPS)
        if not D_LIKE_X:
            first, within = _offsets(n, t0, j, E, F, dn, dt, db, de, df, D_FLAT, WIDE, BT)
        tl.store(dx + first + within, tl.where(valid, g, 0.0).to(dx.dtype.element_ty), mask=written)
    else:
        first, within = _offsets(n, t0, j, E, F, dn, dt, db, de, df, D_FLAT, WIDE, BT)
        tl.store(dx + first + within, tl.zeros((BT, BJ), dx.dtype.element_ty), mask=written)
