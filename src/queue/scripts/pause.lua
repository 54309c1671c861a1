-- Pauses a queue for all its workers (wire format 6.11). Active jobs run on.
--
-- KEYS  1-11 the queue, 12 meta
-- ARGV  1-3 header
-- before: any     after: meta-paused is set, what waited is in paused
-- answers {0}
--
-- Bull renames wait, which loses what paused holds already; here that stays in front.
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local kind = redis.call('TYPE', KEYS[12]).ok
if kind ~= 'none' and kind ~= 'hash' then
  return {WRONG_TYPE, KEYS[12]}
end
if redis.call('EXISTS', q.paused) == 0 and redis.call('EXISTS', q.wait) == 1 then
  redis.call('RENAME', q.wait, q.paused)
else
  while redis.call('RPOPLPUSH', q.wait, q.paused) do
  end
end
redis.call('SET', q.pause_flag, 1)
redis.call('HSET', KEYS[12], 'paused', 1)
redis.call('PUBLISH', q.prefix .. 'paused', 'paused')
return {0}
