-- Moves due delayed jobs into the line (wire format 6.8).
--
-- KEYS  1-11 the queue
-- ARGV  1-3 header
-- before: jobs in delayed with a score up to now     after: up to 1000 of them in wait or paused, delay 0
-- answers {0} none left, {1, score} the lowest score left, {2} more are due now
--
-- Ids without a job leave the set; Bull would create an empty job for each, and ignores lifo here.
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local last = string.format('%.0f', tonumber(ARGV[3]) * 4096)
local due = redis.call('ZRANGEBYSCORE', q.delayed, '-inf', last, 'LIMIT', 0, 1000)
for _, id in ipairs(due) do
  local job = q.prefix .. id
  redis.call('ZREM', q.delayed, id)
  if is_hash(job) then
    redis.call('LREM', q.active, 0, id)
    push_as_added(q, id)
    redis.call('HSET', job, 'delay', 0)
    announce_waiting(q, id)
  end
end
local left = redis.call('ZRANGE', q.delayed, 0, 0, 'WITHSCORES')[2]
if not left then
  return {0}
end
if tonumber(left) <= tonumber(last) then
  return {2}
end
announce_delayed(q, tonumber(left) / 4096)
return {1, left}
