-- The updates that took longest, and how they compare with the run's median.
-- param n BIGINT 20 number of updates
SELECT
    run_id,
    update,
    coalesce(rollout_s, 0) + coalesce(update_s, 0) AS seconds,
    rollout_s,
    update_s,
    seconds / nullif(median(coalesce(rollout_s, 0) + coalesce(update_s, 0)) OVER (PARTITION BY run_id), 0)
        AS times_median,
    minibatch_count
FROM ppo_updates
WHERE rollout_s IS NOT NULL OR update_s IS NOT NULL
ORDER BY seconds DESC, run_id, update
LIMIT $n
