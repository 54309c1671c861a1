-- Appends lines to a job's log (wire format 6.14).
--
-- KEYS  1-6 the queue, 7 job, 8 its log
-- ARGV  1-3 header, 4 how many lines stay, then the lines
-- before: the job exists     after: its log ends with the lines, the oldest beyond the limit are gone
-- answers {number of lines now}
if not is_hash(KEYS[7]) then
  return {MISSING}
end
for i = 5, #ARGV do
  redis.call('RPUSH', KEYS[8], ARGV[i])
end
redis.call('LTRIM', KEYS[8], '-' .. ARGV[4], -1)
return {redis.call('LLEN', KEYS[8])}
