-- The size of each layer's gradient relative to its weights: which layers learn much, and which hardly learn.
SELECT
    run_id,
    layer,
    count(*) AS steps,
    quantile_cont(finite(grad_norm), 0.5) AS grad_norm,
    quantile_cont(finite(update_ratio), 0.5) AS update_ratio,
    last(weight_norm ORDER BY attempt, update, minibatch) - first(weight_norm ORDER BY attempt, update, minibatch)
        AS weight_growth,
    avg(nonfinite_fraction) AS nonfinite_fraction
FROM layers
GROUP BY run_id, layer
ORDER BY run_id, update_ratio DESC NULLS LAST, layer
