-- Runs failed jobs again, oldest first (wire format 6.10). As Bull, it publishes nothing: workers find the jobs at
-- their next look. Each goes where adding it would put it; Bull ignores priority and lifo.
--
-- KEYS  1-11 the queue
-- ARGV  1-3 header, 4 how many at most
-- before: jobs in failed     after: they are in wait or paused, attemptsMade kept; ids without a job are gone
-- answers {looked at, moved}
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local ids = redis.call('ZRANGE', q.failed, 0, string.format('%d', tonumber(ARGV[4]) - 1))
local moved = 0
for _, id in ipairs(ids) do
  redis.call('ZREM', q.failed, id)
  if is_hash(q.prefix .. id) then
    push_retried(q, id)
    moved = moved + 1
  end
end
return {#ids, moved}
