-- Whether the value predictions are biased: the mean residual relative to its size, which explained variance ignores.
-- param fraction DOUBLE 0.5 |mean| / rms of the residual at which it counts as biased
SELECT
    run_id,
    count(*) AS updates,
    count(*) FILTER (abs(residual_mean) >= $fraction * residual_rms AND residual_rms > 0) AS updates_biased,
    avg(finite(residual_mean)) AS residual_mean,
    avg(finite(residual_rms)) AS residual_rms,
    avg(finite(explained_variance)) AS explained_variance
FROM ppo_updates
WHERE residual_rms IS NOT NULL
GROUP BY run_id
ORDER BY updates_biased DESC, run_id
