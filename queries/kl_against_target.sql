-- KL relative to its target: how often it exceeded the target, and by how much at most.
-- param factor DOUBLE 1.5 multiple of the target above which it counts as exceeded
-- param target DOUBLE NULL the target of runs that recorded none
WITH targets AS (
    SELECT run_id, update, approx_kl, coalesce(target_kl, $target) AS target FROM ppo_updates
)
SELECT
    run_id,
    any_value(target) AS target_kl,
    count(approx_kl) AS updates,
    count(*) FILTER (above(approx_kl, $factor * target)) AS exceeded,
    exceeded / nullif(updates, 0) AS exceeded_fraction,
    min(update) FILTER (above(approx_kl, $factor * target)) AS first_update,
    max(finite(approx_kl)) AS largest,
    max(finite(approx_kl) / target) AS times_target
FROM targets
WHERE target IS NOT NULL
GROUP BY run_id
ORDER BY exceeded_fraction DESC, run_id
