-- Whether the components of the reward add up to the total; if not, something is missing or counted twice.
-- param tolerance DOUBLE 0.00001 largest difference that counts as equal
WITH sums AS (
    SELECT
        run_id, update, env, step, total_reward,
        coalesce(bounded_attribution, 0) + coalesce(compute_rent, 0) + coalesce(occupancy_rent, 0)
        + coalesce(fossilized_rent, 0) + coalesce(alpha_shock, 0) + coalesce(blending_warning, 0)
        + coalesce(holding_warning, 0) + coalesce(stage_bonus, 0) + coalesce(pbrs_bonus, 0)
        + coalesce(synergy_bonus, 0) + coalesce(action_shaping, 0) + coalesce(terminal_bonus, 0)
        + coalesce(fossilize_terminal_bonus, 0) + coalesce(hindsight_credit, 0) + coalesce(ratio_penalty, 0)
        + coalesce(escrow_forfeit, 0) + coalesce(drip_this_epoch, 0) + coalesce(drip_immediate_bonus, 0) AS components
    FROM rewards
    WHERE total_reward IS NOT NULL
)
SELECT
    run_id,
    count(*) AS steps,
    count(*) FILTER (NOT abs(total_reward - components) <= $tolerance OR isnan(components)) AS steps_mismatched,
    steps_mismatched / steps AS mismatched_fraction,
    max(abs(finite(total_reward - components))) AS largest_difference,
    arg_max(update, abs(finite(total_reward - components))) AS largest_difference_update
FROM sums
GROUP BY run_id
ORDER BY mismatched_fraction DESC, run_id
