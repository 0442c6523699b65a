-- What moved first: for each run, the metrics in the order in which they first left the range of their beginning.
-- param sigmas DOUBLE 6 standard deviations of the first updates that count as leaving
-- param baseline BIGINT 20 updates that make the range
WITH metrics AS (
    UNPIVOT (
        SELECT
            run_id, update, progress, approx_kl, clip_fraction, ratio_max, entropy, entropy_normalized,
            entropy_weighted_sum, policy_loss, value_loss, explained_variance, grad_norm, grad_norm_clipped,
            advantage_std, return_mean, return_std, learning_rate
        FROM ppo_updates
    )
    ON COLUMNS(* EXCLUDE (run_id, update, progress))
    INTO NAME metric VALUE value
),
ranges AS (
    SELECT run_id, metric, avg(value) AS usual, stddev_samp(value) AS spread
    FROM (SELECT *, row_number() OVER (PARTITION BY run_id, metric ORDER BY update) AS place FROM metrics
        WHERE isfinite(value))
    WHERE place <= $baseline
    GROUP BY run_id, metric
    HAVING count(*) = $baseline AND spread > 0
)
SELECT
    run_id,
    metric,
    min(update) AS update,
    arg_min(progress, update) AS progress,
    any_value(usual) AS usual,
    arg_min(value, update) AS value,
    arg_min(abs(value - usual) / spread, update) AS sigmas
FROM metrics
JOIN ranges USING (run_id, metric)
WHERE isnan(value) OR abs(value - usual) > $sigmas * spread
GROUP BY run_id, metric
ORDER BY run_id, update, sigmas DESC, metric
