-- Puts an interrupted job where it is taken next; the attempt does not count.
--
-- KEYS  1-11 the queue, 12 job, 13 lock
-- ARGV  1-3 header, 4 id, 5 token
-- before: job active, locked by the token     after: job at the taking end of wait or paused, no lock
-- answers {0}
local q = open_queue(1, ARGV[1], ARGV[2])
local wrong = mistyped(q)
if wrong then
  return {WRONG_TYPE, wrong}
end
local code = ownership(KEYS[12], KEYS[13], ARGV[5])
if code < 0 then
  return {code}
end
code = leave_active(q, ARGV[4], KEYS[13])
if code < 0 then
  return {code}
end
push_first(q, ARGV[4], number_of(redis.call('HGET', KEYS[12], 'priority'), 0))
announce_waiting(q, ARGV[4])
return {0}
