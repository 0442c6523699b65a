-- Updates whose explained variance means little, because the returns barely vary.
-- param below DOUBLE 1 standard deviations of the returns below this count as low
SELECT
    run_id,
    update,
    progress,
    explained_variance,
    coalesce(rollout_return_std, return_std) AS return_std,
    return_variance_low,
    value_loss,
    residual_rms
FROM ppo_updates
WHERE below(coalesce(rollout_return_std, return_std), $below) OR return_variance_low
ORDER BY run_id, update
