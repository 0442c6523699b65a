-- How far the entropy fell: its mean over the first and over the last updates of each run.
-- param updates BIGINT 10 updates at each end
WITH measured AS (
    SELECT
        run_id, coalesce(finite(entropy), finite(entropy_weighted_sum)) AS entropy,
        CASE WHEN finite(entropy) IS NULL THEN 'entropy_weighted_sum' ELSE 'entropy' END AS kind,
        row_number() OVER (PARTITION BY run_id ORDER BY update) AS place,
        row_number() OVER (PARTITION BY run_id ORDER BY update DESC) AS place_from_end
    FROM ppo_updates
    WHERE coalesce(finite(entropy), finite(entropy_weighted_sum)) IS NOT NULL
)
SELECT
    run_id,
    min(kind) AS of_column,
    avg(entropy) FILTER (place <= $updates) AS at_first,
    avg(entropy) FILTER (place_from_end <= $updates) AS at_last,
    at_last - at_first AS change,
    min(entropy) AS smallest
FROM measured
GROUP BY run_id
ORDER BY change, run_id
