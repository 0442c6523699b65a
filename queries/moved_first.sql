-- What moved first: the metrics of each run, in the order in which they first left the range of their first updates.
-- param sigmas DOUBLE 6 deviations from the median (1.4826 times the median absolute deviation) that count as leaving
-- param baseline BIGINT 20 most updates that define the range
-- param fraction DOUBLE 0.25 largest fraction of the updates that define the range, so that a failure does not
-- param floor DOUBLE 0.05 smallest deviation, as a fraction of the metric's level; less is noise
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
-- The scale of metrics that begin near zero; the others are compared with their level alone.
scales(metric, scale) AS (
    VALUES ('approx_kl', 0.01), ('clip_fraction', 0.1), ('entropy_normalized', 1.0), ('explained_variance', 1.0)
),
runs_begin AS (
    SELECT run_id, count(*) AS updates, least($baseline, CAST(floor($fraction * count(*)) AS BIGINT)) AS usable
    FROM (SELECT DISTINCT run_id, update FROM ppo_updates)
    GROUP BY run_id
),
beginnings AS (
    SELECT run_id, metric, value
    FROM (SELECT *, dense_rank() OVER (PARTITION BY run_id ORDER BY update) AS place
        FROM (SELECT run_id, update FROM ppo_updates) LEFT JOIN metrics USING (run_id, update))
    JOIN runs_begin USING (run_id)
    WHERE place <= usable AND isfinite(value)
),
medians AS (
    SELECT run_id, metric, median(value) AS usual, mad(value) AS deviation, count(*) AS n
    FROM beginnings
    GROUP BY run_id, metric
),
ranges AS (
    SELECT
        run_id, metric, usual, n,
        greatest(1.4826 * deviation, $floor * greatest(abs(usual), coalesce(scale, 0))) AS spread
    FROM medians
    LEFT JOIN scales USING (metric)
),
moved AS (
    SELECT
        run_id,
        metric,
        min(update) AS update,
        first(progress ORDER BY update) AS progress,
        any_value(usual) AS usual,
        first(value ORDER BY update) AS value,
        first(abs(value - usual) / spread ORDER BY update) AS sigmas
    FROM metrics
    JOIN ranges USING (run_id, metric)
    WHERE n >= 5 AND spread > 0 AND (isnan(value) OR abs(value - usual) > $sigmas * spread)
    GROUP BY run_id, metric
)
SELECT *, CAST(NULL AS VARCHAR) AS note FROM moved
UNION ALL
SELECT
    run_id, NULL, NULL, NULL, NULL, NULL, NULL,
    format('not evaluated: {} of {} updates may define the range, and 5 are needed; raise fraction or baseline',
        usable, updates)
FROM runs_begin
WHERE usable < 5
UNION ALL
SELECT
    run_id, metric, NULL, NULL, any_value(usual), NULL, NULL,
    CASE
        WHEN coalesce(any_value(n), 0) < 5 THEN format('not evaluated: {} finite values among the first {} updates, '
            'and 5 are needed', coalesce(any_value(n), 0), any_value(usable))
        ELSE 'not evaluated: it was constant at first, so there is no range'
    END
FROM (SELECT DISTINCT run_id, metric FROM metrics)
JOIN runs_begin USING (run_id)
LEFT JOIN ranges USING (run_id, metric)
WHERE usable >= 5 AND (coalesce(n, 0) < 5 OR spread = 0)
GROUP BY run_id, metric
ORDER BY run_id, update NULLS LAST, sigmas DESC, metric
