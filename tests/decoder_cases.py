"""Published inputs of beam-search tests, and answers that were computed for them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def random_log_probs(
    rng: np.random.Generator, frames: int, classes: int, peak: float = 2.0
) -> NDArray[np.float64]:
    return log_softmax(rng.normal(scale=peak, size=(frames, classes)))


# TensorFlow's test of ctc_beam_search_decoder: logits, blank 5
TENSORFLOW_LOGITS = np.array(
    [
        [0.30999, 0.309938, 0.0679938, 0.0673362, 0.0708352, 0.173908],
        [0.215136, 0.439699, 0.0370931, 0.0393967, 0.0381581, 0.230517],
        [0.199959, 0.489485, 0.0233221, 0.0251417, 0.0233289, 0.238763],
        [0.279611, 0.452966, 0.0204795, 0.0209126, 0.0194803, 0.20655],
        [0.51286, 0.288951, 0.0243026, 0.0220788, 0.0219297, 0.129878],
    ]
)
TENSORFLOW_BLANK = 5
TENSORFLOW_BEAM_2 = [((1, 0), -5.811451), ((1,), -6.63339)]
TENSORFLOW_EXACT = {(1, 0): -4.717032, (1,): -5.639392}

# Paddle's tests of its CTC decoders: probabilities, blank 6
PADDLE_TOKENS = "' abcd_"
PADDLE_BLANK = 6
PADDLE_1 = np.array(
    [
        [0.06390443, 0.21124858, 0.27323887, 0.06870235, 0.0361254, 0.18184413, 0.16493624],
        [0.03309247, 0.22866108, 0.24390638, 0.09699597, 0.31895462, 0.0094893, 0.06890021],
        [0.218104, 0.19992557, 0.18245131, 0.08503348, 0.14903535, 0.08424043, 0.08120984],
        [0.12094152, 0.19162472, 0.01473646, 0.28045061, 0.24246305, 0.05206269, 0.09772094],
        [0.1333387, 0.00550838, 0.00301669, 0.21745861, 0.20803985, 0.41317442, 0.01946335],
        [0.16468227, 0.1980699, 0.1906545, 0.18963251, 0.19860937, 0.04377724, 0.01457421],
    ]
)
PADDLE_1_EXACT = ("acb", -6.098899)
PADDLE_1_BEAM_20 = ("acdc", -6.480284)
PADDLE_1_BEAM_40 = ("acb", -6.206316)
PADDLE_2 = np.array(
    [
        [0.08034842, 0.22671944, 0.05799633, 0.36814645, 0.11307441, 0.04468023, 0.10903471],
        [0.09742457, 0.12959763, 0.09435383, 0.21889204, 0.15113123, 0.10219457, 0.20640612],
        [0.45033529, 0.09091417, 0.15333208, 0.07939558, 0.08649316, 0.12298585, 0.01654384],
        [0.02512238, 0.22079203, 0.19664364, 0.11906379, 0.07816055, 0.22538587, 0.13483174],
        [0.17928453, 0.06065261, 0.41153005, 0.1172041, 0.11880313, 0.07113197, 0.04139363],
        [0.15882358, 0.1235788, 0.23376776, 0.20510435, 0.00279306, 0.05294827, 0.22298418],
    ]
)
PADDLE_2_EXACT = ("b'a", -4.903181)

# The best path spells "aa", the most probable text is "a": classes "a" and blank
TRAP = np.array([[0.8, 0.2], [0.4, 0.6], [0.8, 0.2]])
TRAP_BLANK = 1
TRAP_EXACT = {(0,): 0.592, (0, 0): 0.384, (): 0.024}
