"""Measure the cost of quantisation: compare a pair of files with its reference, the same pair with more bits.

The reference has the F16 or F32 sibling of either file, or of both; a file without a sibling is its own reference.
Without any sibling the weights are the same, and the comparison measures the cost of ggml's rounding of activations
(precision `ggml` against `exact`). The modules, in this order:

  siblings    checks that two pairs have the same tensors, settings and vocabulary; exchanges single tensors of a pair
  tensors     compares each stored tensor: bits per weight, error of the weights; a few rows at a time
  cases       holds pictures, questions, and the answers that the reference gives
  inside      measures the error of each matrix product with the reference's inputs, and the error of each layer: what
              it adds to the reference's input, and what has accumulated up to it
  behaviour   compares image rows, and the next token at every position of question and answer: cosine, KL, likeliest
              token
  comparison  runs both pairs through the cases
  ranking     finds the tensors that deserve more bits

The ranking rests on a measurement. The cost of a tensor can be measured in two ways: quantise it alone in the
reference, or raise it alone in the quantised pair. Errors of different tensors add up with either sign, so that raising
one may well make things worse by chance; on the embedded pair in Q4_0 the second way gives another order on other
pictures (rank correlation 0.2 between 8 pictures and 100 others), the first the same (0.9). So tensors are ranked by
the first, per byte that raising them takes. Then the first 1, 2, 4, 8, ... are raised together in the quantised pair,
which shows how much of the KL goes away for how many bytes.
"""
