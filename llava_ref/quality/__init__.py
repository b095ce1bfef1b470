"""What quantisation costs: a pair of files beside the same pair with more bits, its reference.

The reference is the F16 or F32 sibling of either file, or of both; a half without a sibling is its own. Without any
sibling the weights are the same, and what is measured is what ggml's rounding of activations costs (precision `ggml`
against `exact`). In this order:

  siblings   the two pairs have the same tensors, settings and vocabulary; pairs with single tensors exchanged
  tensors    each stored tensor: bits per weight, error of its weights; rows at a time, so that no tensor is held whole
  cases      pictures, questions, and the answers that the reference gives
  products   each matrix at work: the error of its product with the inputs that the reference has there
  layers     each block: the error it adds to what the reference feeds it, and the error the pass carries by then
  behaviour  image rows, and the next token at every position of question and answer: cosine, KL, the likeliest token
  ranking    which tensors deserve more bits

The ranking rests on a measurement. Two ways to ask what a tensor costs: quantise it alone in the reference, or raise it
alone in the quantised pair. Errors of different tensors add up with either sign, so that raising one may well make
things worse by chance; on the embedded pair in Q4_0 the second way gives another order on other pictures (rank
correlation 0.2 between 8 pictures and 100 others), the first the same (0.9). So tensors are ranked by the first, per
byte that raising them takes, and then the first 1, 2, 4, 8, ... are raised together in the quantised pair, where one
sees how much of the KL goes away for how many bytes.
"""
