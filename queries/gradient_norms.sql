-- Percentiles of the gradient norm of each run, and how often it was clipped.
SELECT
    run_id,
    count(grad_norm) AS updates,
    quantile_cont(finite(grad_norm), 0.5) AS p50,
    quantile_cont(finite(grad_norm), 0.9) AS p90,
    quantile_cont(finite(grad_norm), 0.99) AS p99,
    max(finite(coalesce(grad_norm_max, grad_norm))) AS largest,
    arg_max(update, finite(coalesce(grad_norm_max, grad_norm))) AS largest_update,
    any_value(max_grad_norm) AS max_grad_norm,
    count(*) FILTER (above(grad_norm, max_grad_norm)) / nullif(count(max_grad_norm), 0) AS clipped_fraction
FROM ppo_updates
GROUP BY run_id
HAVING count(grad_norm) > 0
ORDER BY p99 DESC, run_id
