-- Sets one field of a job: its progress or its data (wire format 6.14).
--
-- KEYS  1-6 the queue, 7 job
-- ARGV  1-3 header, 4 field, 5 value as JSON, then for progress: 6 message
-- before: the job exists     after: the field is set
-- answers {0}
if not is_hash(KEYS[7]) then
  return {MISSING}
end
redis.call('HSET', KEYS[7], ARGV[4], ARGV[5])
if ARGV[6] then
  redis.call('PUBLISH', ARGV[1] .. 'progress', ARGV[6])
end
return {0}
