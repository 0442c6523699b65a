-- How the frequencies of the actions changed over the training.
-- param bins BIGINT 4 intervals that the training is divided into
SELECT
    run_id,
    action,
    least(floor(progress * $bins), $bins - 1) / $bins AS progress_from,
    sum(n) AS times,
    sum(n) / sum(sum(n)) OVER (PARTITION BY run_id, progress_from) AS fraction
FROM action_distribution
GROUP BY run_id, action, progress_from
ORDER BY run_id, action, progress_from
