-- Resumes a queue (wire format 6.11).
--
-- KEYS  1-11 the queue, 12 meta
-- ARGV  1-3 header
-- before: any     after: meta-paused is gone, what was paused is in wait, before what a foreign writer put there
-- answers {0}
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local kind = redis.call('TYPE', KEYS[12]).ok
if kind ~= 'none' and kind ~= 'hash' then
  return {WRONG_TYPE, KEYS[12]}
end
if redis.call('EXISTS', q.wait) == 0 and redis.call('EXISTS', q.paused) == 1 then
  redis.call('RENAME', q.paused, q.wait)
else
  local id = redis.call('LPOP', q.paused)
  while id do
    redis.call('RPUSH', q.wait, id)
    id = redis.call('LPOP', q.paused)
  end
end
redis.call('DEL', q.pause_flag)
redis.call('HDEL', KEYS[12], 'paused')
redis.call('PUBLISH', q.prefix .. 'resumed', 'resumed')
return {0}
