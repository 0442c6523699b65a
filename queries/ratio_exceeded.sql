-- Which runs had a ratio above a limit: when first, how often, and the largest.
-- param above DOUBLE 5 limit of the ratio
SELECT
    run_id,
    count(*) AS updates,
    min(update) AS first_update,
    arg_min(progress, update) AS first_progress,
    max(nullif(ratio_max, 'nan')) AS worst_ratio,
    arg_max(update, nullif(ratio_max, 'nan')) AS worst_update
FROM ppo_updates
WHERE above(ratio_max, $above)
GROUP BY run_id
ORDER BY worst_ratio DESC, run_id
