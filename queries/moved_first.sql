-- What moved first: for each run, the metrics in the order in which they first left the range of their beginning.
-- param sigmas DOUBLE 6 deviations (1.4826 times the median distance to the median) that count as leaving
-- param baseline BIGINT 20 updates that make the range, at most
-- param fraction DOUBLE 0.25 of the run's updates that make the range, at most: a wreck must not become what is usual
-- param floor DOUBLE 0.05 the least deviation, as a share of the metric's level: below it is noise
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
-- What these are small against, however near to zero they begin; other metrics have their own level alone.
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
    SELECT run_id, metric, median(value) AS usual, mad(value) AS off, count(*) AS n
    FROM beginnings
    GROUP BY run_id, metric
),
ranges AS (
    SELECT
        run_id, metric, usual, n,
        greatest(1.4826 * off, $floor * greatest(abs(usual), coalesce(scale, 0))) AS spread
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
    format('not judged: {} of {} updates may make the range, and it takes 5; a larger fraction or baseline takes more',
        usable, updates)
FROM runs_begin
WHERE usable < 5
UNION ALL
SELECT
    run_id, metric, NULL, NULL, any_value(usual), NULL, NULL,
    CASE
        WHEN coalesce(any_value(n), 0) < 5 THEN format('not judged: {} finite values among the first {} updates, and it '
            'takes 5', coalesce(any_value(n), 0), any_value(usable))
        ELSE 'not judged: it stood still at the beginning, so there is no range'
    END
FROM (SELECT DISTINCT run_id, metric FROM metrics)
JOIN runs_begin USING (run_id)
LEFT JOIN ranges USING (run_id, metric)
WHERE usable >= 5 AND (coalesce(n, 0) < 5 OR spread = 0)
GROUP BY run_id, metric
ORDER BY run_id, update NULLS LAST, sigmas DESC, metric
