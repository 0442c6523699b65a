-- Which action heads collapsed, that is, kept an entropy below a limit, and whether they had anything to learn from.
-- param below DOUBLE 0.1 normalised entropies below this count as low
-- param in_a_row BIGINT 3 consecutive low updates that make a collapse
WITH measured AS (
    SELECT run_id, head, update, learnable_fraction, coalesce(entropy_normalized, entropy_normalized_all) AS entropy
    FROM heads
),
low AS (
    SELECT *, update - row_number() OVER (PARTITION BY run_id, head ORDER BY update) AS stretch
    FROM measured
    WHERE below(entropy, $below)
),
stretches AS (
    SELECT run_id, head, min(update) AS first_update, max(update) AS last_update, count(*) AS updates,
        min(entropy) AS entropy_min, avg(finite(learnable_fraction)) AS learnable_fraction
    FROM low
    GROUP BY run_id, head, stretch
    HAVING count(*) >= $in_a_row
)
SELECT
    run_id,
    head,
    min(first_update) AS first_update,
    max(last_update) AS last_update,
    count(*) AS collapses,
    sum(updates) AS updates,
    max(updates) AS longest,
    min(entropy_min) AS entropy_min,
    sum(learnable_fraction * updates) / sum(updates) AS learnable_fraction
FROM stretches
GROUP BY run_id, head
ORDER BY updates DESC, run_id, head
