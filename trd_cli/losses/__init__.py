"""What the student is trained to make small: one short file a divergence, pure functions of probabilities.

p is the student π_θ, q the teacher π_T. Axes: C positions, V vocabulary, S a support (the vocabulary, or the teacher's
top K). A *pointwise* divergence D = Σ_v e(p_v, q_v) is a function of two distributions that returns `Parts`: its
entries and their slopes. From the slopes s_v = ∂e_v/∂log p_v follows the gradient with respect to the logits, whatever
the divergence: ∂D/∂z_v = s_v − p_v Σ_u s_u.
"""
