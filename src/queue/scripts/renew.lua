-- Renews a lock and looks for an order to stop (wire format 6.5).
--
-- KEYS  1-6 the queue, 7 lock, 8 order to cancel (ours, not Bull's), 9 failed
-- ARGV  1-3 header, 4 id, 5 token, 6 lock in ms
-- before: the token owns the lock, or nobody does and the job is active still
-- after:  the lock lasts for another period, the job is not stalled
-- answers {1} held, {2, who} held and to be cancelled, {0} not ours any more: a lock of ours is gone then, nothing else changed
local q = open_line(1, ARGV[1], ARGV[2])

local function text_at(key)
  return redis.call('TYPE', key).ok == 'string' and redis.call('GET', key)
end

local function is_in(set)
  return redis.call('TYPE', set).ok == 'zset' and redis.call('ZSCORE', set, ARGV[4])
end

local owner = text_at(KEYS[7])
if owner and owner ~= ARGV[5] then
  return {0}
end
-- Somebody else ended or deleted the job and left the lock, as bull-repl's `fail` and `complete` do and obliterating by
-- force may: a lock that is kept would bar the job from being retried or removed.
if owner and (not is_hash(q.prefix .. ARGV[4]) or is_in(q.completed) or is_in(KEYS[9])) then
  redis.call('DEL', KEYS[7])
  return {0}
end
-- The lock ran out (Redis was away, or this process stood still), but nobody has taken the job since: whoever did would
-- have put it in the line first, by the stalled check. So it is this run's still, and need not be run twice.
if not owner and not (is_hash(q.prefix .. ARGV[4]) and redis.call('TYPE', q.active).ok == 'list' and redis.call('LPOS', q.active, ARGV[4])) then
  return {0}
end
-- Without memory Redis refuses to set a key but not to prolong one; nor to set it once the script has written something that
-- takes none, as deleting does.
if owner then
  redis.call('PEXPIRE', KEYS[7], ARGV[6])
else
  redis.call('DEL', KEYS[7])
  redis.call('SET', KEYS[7], ARGV[5], 'PX', ARGV[6])
end
if redis.call('TYPE', q.stalled).ok == 'set' then
  redis.call('SREM', q.stalled, ARGV[4])
end
local who = text_at(KEYS[8])
if who then
  return {2, who}
end
return {1}
