-- One row is one component of the reward in a run: how large it is, and how it correlates with the outcome.
-- column run_id VARCHAR - the run
-- column component VARCHAR - column of `rewards`
-- column n BIGINT 1 steps with a value
-- column mean DOUBLE 1 its mean over the steps
-- column std DOUBLE 1 its population standard deviation
-- column size_fraction DOUBLE 1 its fraction of the sum of |component| over the components of the reward; NULL: all are
--     zero, or it is not a term of the reward (base_acc_delta is an input of others)
-- column total_correlation DOUBLE 1 correlation with the total reward over steps; NULL: either does not vary
-- column return_correlation DOUBLE 1 correlation of its sum over an episode with the episode's return; NULL: either
--     does not vary, or no return was recorded
-- column accuracy_correlation DOUBLE 1 the same with the episode's final accuracy; NULL: either does not vary, or no
--     accuracy was recorded
WITH components AS (
    UNPIVOT (
        SELECT
            run_id, update, env, total_reward, base_acc_delta, bounded_attribution, compute_rent, occupancy_rent,
            fossilized_rent, alpha_shock, blending_warning, holding_warning, stage_bonus, pbrs_bonus, synergy_bonus,
            action_shaping, terminal_bonus, fossilize_terminal_bonus, hindsight_credit, ratio_penalty, escrow_delta,
            escrow_forfeit, drip_this_epoch, drip_immediate_bonus
        FROM rewards
    )
    ON COLUMNS(* EXCLUDE (run_id, update, env, total_reward))
    INTO NAME component VALUE amount
),
steps AS (
    SELECT
        run_id, component, count(*) AS n, avg(finite(amount)) AS mean, stddev_pop(finite(amount)) AS std,
        CASE WHEN component <> 'base_acc_delta' THEN sum(abs(finite(amount))) END AS size,
        CASE WHEN stddev_pop(finite(amount)) > 0 AND stddev_pop(finite(total_reward)) > 0
            THEN corr(finite(amount), finite(total_reward)) END AS total_correlation
    FROM components
    GROUP BY run_id, component
),
episode_sums AS (
    SELECT run_id, update, env, component, sum(finite(amount)) AS amount FROM components GROUP BY ALL
),
outcomes AS (
    SELECT
        s.run_id, s.component,
        CASE WHEN stddev_pop(s.amount) > 0 AND stddev_pop(finite(e.episode_return)) > 0
            THEN corr(s.amount, finite(e.episode_return)) END AS return_correlation,
        CASE WHEN stddev_pop(s.amount) > 0 AND stddev_pop(finite(e.final_accuracy)) > 0
            THEN corr(s.amount, finite(e.final_accuracy)) END AS accuracy_correlation
    FROM episode_sums AS s
    JOIN episodes AS e USING (run_id, update, env)
    GROUP BY s.run_id, s.component
)
SELECT
    run_id, component, n, mean, std, size / nullif(sum(size) OVER (PARTITION BY run_id), 0) AS size_fraction,
    total_correlation, return_correlation, accuracy_correlation
FROM steps
LEFT JOIN outcomes USING (run_id, component)
