-- How two runs differ over the training: the mean of a metric at equal progress.
-- param a RUN required the first run
-- param b RUN required the second run
-- param metric METRIC approx_kl a numeric column of ppo_updates
-- param bins BIGINT 10 intervals that the training is divided into
WITH metrics AS (
    SELECT run_id, progress, COLUMNS(lambda name: name = $metric)::DOUBLE AS value
    FROM ppo_updates
    WHERE run_id IN ($a, $b)
)
SELECT
    bin / $bins AS progress_from,
    (bin + 1) / $bins AS progress_to,
    avg(finite(value)) FILTER (run_id = $a) AS a,
    avg(finite(value)) FILTER (run_id = $b) AS b,
    b - a AS difference
FROM (SELECT *, least(floor(progress * $bins), $bins - 1) AS bin FROM metrics)
WHERE bin IS NOT NULL
GROUP BY bin
ORDER BY bin
