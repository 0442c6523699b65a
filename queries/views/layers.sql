-- One row is one parameter tensor's gradient at one optimizer step, with fractions of its counts.
-- columns of gradient_layers
-- column zero_fraction DOUBLE 1 fraction of its elements that were exactly zero; NULL: no gradient
-- column nonfinite_fraction DOUBLE 1 fraction of its elements that were NaN or infinite; NULL: no gradient
-- column update_ratio DOUBLE 1 grad_norm / weight_norm; NULL: not measured
-- column dead BOOLEAN - it had no gradient, or every element was zero; NULL: not measured
SELECT
    *,
    grad_zero / nullif(n, 0) AS zero_fraction,
    (grad_nan + grad_posinf + grad_neginf) / nullif(n, 0) AS nonfinite_fraction,
    grad_norm / nullif(weight_norm, 0) AS update_ratio,
    NOT has_grad OR grad_zero = n AS dead
FROM gradient_layers
