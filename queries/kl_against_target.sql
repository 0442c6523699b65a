-- KL against the target it should be kept at: how often it was beyond, and by how much at most.
-- param factor DOUBLE 1.5 times the target that counts as beyond
-- param target DOUBLE NULL the target where a run tells none
WITH held AS (
    SELECT run_id, update, approx_kl, coalesce(target_kl, $target) AS target FROM ppo_updates
)
SELECT
    run_id,
    any_value(target) AS target_kl,
    count(approx_kl) AS updates,
    count(*) FILTER (above(approx_kl, $factor * target)) AS beyond,
    beyond / nullif(updates, 0) AS beyond_fraction,
    min(update) FILTER (above(approx_kl, $factor * target)) AS first_update,
    max(finite(approx_kl)) AS largest,
    max(finite(approx_kl) / target) AS times_target
FROM held
WHERE target IS NOT NULL
GROUP BY run_id
ORDER BY beyond_fraction DESC, run_id
