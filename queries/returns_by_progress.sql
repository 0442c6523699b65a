-- How the returns of the episodes changed over the training.
-- param bins BIGINT 10 intervals that the training is divided into
SELECT
    run_id,
    least(floor(progress * $bins), $bins - 1) / $bins AS progress_from,
    count(*) AS episodes,
    avg(finite(episode_return)) AS return_mean,
    quantile_cont(finite(episode_return), 0.5) AS return_median,
    min(finite(episode_return)) AS return_min,
    max(finite(episode_return)) AS return_max,
    avg(episode_length) AS length_mean,
    avg(finite(final_accuracy)) AS accuracy_mean
FROM episode_outcomes
GROUP BY run_id, progress_from
ORDER BY run_id, progress_from
