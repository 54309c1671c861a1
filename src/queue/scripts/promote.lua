-- Runs a delayed job now (wire format 6.9).
--
-- KEYS  1-11 the queue, 12 job
-- ARGV  1-3 header, 4 id
-- before: job in delayed     after: job in wait or paused, delay 0
-- answers {0}
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
if not is_hash(KEYS[12]) then
  return {MISSING}
end
if redis.call('ZREM', q.delayed, ARGV[4]) == 0 then
  return {NOT_DELAYED}
end
push_as_added(q, ARGV[4])
redis.call('HSET', KEYS[12], 'delay', 0)
announce_waiting(q, ARGV[4])
return {0}
