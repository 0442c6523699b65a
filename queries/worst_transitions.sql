-- The transitions whose probability changed most, non-finite ones first, with their actions.
-- param n BIGINT 20 number of transitions
-- param head VARCHAR NULL an action head; the joint ratio if not given
SELECT
    run_id, update, epoch, minibatch, env, env_step, action, ratio, log_ratio, old_log_prob, new_log_prob, advantage,
    value, value_target
FROM exemplars
WHERE scope = 'update' AND head = coalesce($head, '')
ORDER BY isfinite(log_ratio), abs(log_ratio) DESC, run_id, update, place
LIMIT $n
