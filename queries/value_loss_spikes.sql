-- Updates whose value loss jumped above its level in the updates before.
-- param factor DOUBLE 5 multiple of the median before that counts as a jump
-- param before BIGINT 20 number of updates before that give the median
WITH windowed AS (
    SELECT
        run_id, update, progress, value_loss, explained_variance, return_std,
        median(finite(value_loss)) OVER before AS usual,
        count(finite(value_loss)) OVER before AS measured
    FROM ppo_updates
    WINDOW before AS (PARTITION BY run_id ORDER BY update RANGE BETWEEN $before PRECEDING AND 1 PRECEDING)
)
SELECT run_id, update, progress, value_loss, usual, value_loss / usual AS times, explained_variance, return_std
FROM windowed
WHERE measured = $before AND above(value_loss, $factor * usual)
ORDER BY run_id, update
