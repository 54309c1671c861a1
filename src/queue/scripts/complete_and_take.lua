-- Completes a job and takes the next one (wire format 6.6), which spares a busy worker half of its round trips.
--
-- KEYS  1-6 the queue, 7 job, 8 lock, 9 order to cancel
-- ARGV  1-3 header, 4 id, 5 token, 6 result as JSON, 7 message, 8 count and 9 age to keep, 10 token and 11 lock in ms of
--       the next run
-- before: job active, locked by the token
-- after:  job in completed (or gone, by its retention); the next one active, locked by the other token
-- answers as `take_next`; {0} as well when the next one cannot be taken for an error
local q = open_line(1, ARGV[1], ARGV[2])
local job, lock, id, now, count = KEYS[7], KEYS[8], ARGV[4], ARGV[3], tonumber(ARGV[8])
local known = redis.pcall('HMGET', job, 'timestamp', 'deid')
if known.err or not known[1] and not is_hash(job) then
  return {MISSING}
end
local owner = redis.call('GET', lock)
if owner ~= ARGV[5] then
  return {owner and OTHER_LOCK or NO_LOCK}
end
-- An id less in stalled is harmless, should the next step be refused.
local unmarked = redis.pcall('SREM', q.stalled, id)
if type(unmarked) == 'table' then
  return is_wrong(q.stalled, 'set') and {WRONG_TYPE, q.stalled} or unmarked
end
local left = redis.pcall('LREM', q.active, -1, id)
if type(left) == 'table' then
  return is_wrong(q.active, 'list') and {WRONG_TYPE, q.active} or left
end
local stored = left > 0 and count ~= 0 and redis.pcall('ZADD', q.completed, now, id)
if type(stored) == 'table' then
  redis.call('LPUSH', q.active, id)
  return is_wrong(q.completed, 'zset') and {WRONG_TYPE, q.completed} or stored
end
redis.call('DEL', lock, KEYS[9])
if left == 0 then
  return {NOT_ACTIVE}
end
if known[2] then
  release_debounce(q, id, known[2])
end
if count == 0 then
  forget(q.prefix, id)
else
  redis.call('HSET', job, 'returnvalue', ARGV[6], 'finishedOn', now)
  retain(q, q.completed, tonumber(now), count, tonumber(ARGV[9]))
end
redis.call('PUBLISH', q.prefix .. 'completed', ARGV[7])
-- While the queue is paused, nothing is in wait.
local answer = take_next(q, ARGV[10], ARGV[11], now)
return answer.err and {0} or answer
