-- Renews a lock and looks for an order to stop (wire format 6.5).
--
-- KEYS  1-11 the queue, 12 lock, 13 order to cancel (ours, not Bull's)
-- ARGV  1-3 header, 4 id, 5 token, 6 lock in ms
-- before: the token owns the lock, or nobody does and the job is active still
-- after:  the lock lasts for another period, the job is not stalled
-- answers {1} held, {2, who} held and to be cancelled, {0} not ours any more, nothing changed
local q = open_queue(1, ARGV[1], ARGV[2])
local function text_at(key)
  return redis.call('TYPE', key).ok == 'string' and redis.call('GET', key)
end
local owner = text_at(KEYS[12])
if owner and owner ~= ARGV[5] then
  return {0}
end
-- The lock ran out (Redis was away, or this process stood still), but nobody has taken the job since: whoever did would
-- have put it in the line first, by the stalled check. So it is this run's still, and need not be run twice.
if not owner and not (is_hash(q.prefix .. ARGV[4]) and redis.call('TYPE', q.active).ok == 'list' and redis.call('LPOS', q.active, ARGV[4])) then
  return {0}
end
redis.call('SET', KEYS[12], ARGV[5], 'PX', ARGV[6])
if redis.call('TYPE', q.stalled).ok == 'set' then
  redis.call('SREM', q.stalled, ARGV[4])
end
local who = text_at(KEYS[13])
if who then
  return {2, who}
end
return {1}
