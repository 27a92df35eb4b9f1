"""What Redis does in one step: scripts in Lua, on the keys of one session, on the indexes, or both.

    unrolled:{ID}                  hash: a session
        facts, body                as `session_record` has them
        tenant, position           as in the facts
        epoch                      of the last claim; that in the facts is of the last commit's
        used                       seconds since the epoch, the last use: not before the facts' own
        ttl                        seconds of idle time after which it ends; 0: it does not
        latest                     seconds since the epoch: it ends then in any case; inf: never
    unrolled:{ID}:damaged          a session whose record is not what was written, put aside
    unrolled:{index}:ends          sorted set: IDs by when they were to end, seconds; +inf: never
    unrolled:{index}:tenant:NAME   sorted set: IDs of a tenant's sessions, all with score 0
    unrolled:{index}:sessions      hash: ID to model and tenant
    unrolled:{index}:models        hash: sessions by model

Redis ends sessions, by their keys' expiry. The indexes follow: an entry may outlive its session
until somebody meets it; no session is without one. A session's keys share a hash tag, and so do
the indexes.
"""

from __future__ import annotations

_IS_LATE = """
local function is_late(deadline)
    local time = redis.call('TIME')
    return time[1] * 1000000 + time[2] > tonumber(deadline)
end
"""

LOOK = (
    _IS_LATE
    + """
local asked, epoch, digest, deadline, held_until, expected, as_known = unpack(ARGV)
if deadline ~= '' and is_late(deadline) then return {'late'} end
local found = redis.call('HMGET', KEYS[1], 'tenant', 'epoch', 'facts', 'used', 'position')
local tenant, current, facts, used, position = unpack(found)
if not tenant then
    return redis.call('HGET', KEYS[2], 'tenant') == asked and {'damaged'} or {'none'}
end
if tenant ~= asked then return {'none'} end
local is_same = string.sub(facts, -16) == digest
local is_mine = is_same and current == epoch
local may_claim = deadline ~= '' and (expected == '' or expected == position)
if may_claim and (is_same or as_known == '') then
    if not is_mine then
        redis.call('HINCRBY', KEYS[1], 'epoch', 1)
        current = redis.call('HGET', KEYS[1], 'epoch')
        is_mine = true
    end
    redis.call('PEXPIREAT', KEYS[1], held_until, 'GT')
end
local seen = {'here', is_mine and current or '0', used}
if not is_same then
    seen[4], seen[5] = facts, redis.call('HGET', KEYS[1], 'body')
end
return seen
"""
)
"""KEYS: session, the same put aside. ARGV: tenant; epoch and digest that the caller knows, or ''
twice; then of a claim, or '' four times: when it is too late, in us of Redis's clock; until when it
holds the session, in ms; the position that it is made at, or ''; 1 where it is made only if the
caller knows the session as it is, or ''. Returns 'none', 'damaged', 'late', or 'here', the epoch of
the caller's claim or 0, and the last use; then facts and body if the caller does not know them."""

_IN_TIME = (
    _IS_LATE
    + """
if is_late(ARGV[1]) then return 'late' end
"""
)

_WRITE = """
redis.call('HSET', KEYS[1], 'facts', facts, 'body', body, 'tenant', tenant,
           'position', position, 'epoch', epoch, 'used', used, 'ttl', ttl,
           'latest', latest)
if ends == '' then
    redis.call('PERSIST', KEYS[1])
else
    redis.call('PEXPIREAT', KEYS[1], ends)
end
return 'done'
"""

_RECORD = """
local facts, body, tenant, position, epoch, used, ttl, latest, ends = unpack(ARGV, 2, 10)
"""

INSERT = (
    _IN_TIME
    + _RECORD
    + """
local id, model = unpack(ARGV, 11, 12)
redis.call('ZADD', KEYS[2], ends == '' and '+inf' or ends / 1000, id)
if redis.call('HSET', KEYS[3], id, model .. '\\n' .. tenant) == 1 then
    redis.call('HINCRBY', KEYS[4], model, 1)
end
redis.call('ZADD', KEYS[5], 0, id)
"""
    + _WRITE
)
"""KEYS: session, ends, sessions, models, the tenant's sessions. ARGV: when it is too late, in us of
Redis's clock; facts, body, tenant, position, epoch, used, ttl, latest; when it ends, in ms, or '';
ID, model. Returns 'done' or 'late'. The session comes last: what fails before leaves none."""

COMMIT = (
    _IN_TIME
    + _RECORD
    + """
local current, before = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'facts'))
if not current then return 'gone' end
local since = ARGV[11]
if current ~= epoch or (since ~= '' and string.sub(before, -16) ~= since) then return 'fenced' end
"""
    + _WRITE
)
"""KEYS: session. ARGV: as of INSERT up to its end; then the digest of the record that it follows,
or ''. Returns 'done', 'late', 'gone' where there is no such session, or 'fenced'."""

USE = """
local used, held_until = unpack(ARGV)
local known, ttl, latest = unpack(redis.call('HMGET', KEYS[1], 'used', 'ttl', 'latest'))
if not known then return end
if held_until ~= '' then return redis.call('PEXPIREAT', KEYS[1], held_until, 'GT') end
if tonumber(used) > tonumber(known) then redis.call('HSET', KEYS[1], 'used', used) end
if tonumber(ttl) > 0 then
    local ends = math.min(used + ttl, latest == 'inf' and math.huge or tonumber(latest))
    ends = string.format('%.0f', math.ceil(ends * 1000))
    redis.call('PEXPIREAT', KEYS[1], ends, 'GT')
end
"""
"""KEYS: session. ARGV: when it was used, in seconds, and ''; or anything, and until when a turn
holds it, in ms, which is no use of it yet."""

PUT_ASIDE = """
if redis.call('HGET', KEYS[1], 'facts') ~= ARGV[1] then return 0 end
redis.call('RENAME', KEYS[1], KEYS[2])
redis.call('PERSIST', KEYS[2])
return 1
"""
"""KEYS: session, the same put aside. ARGV: the facts that it was found with. Returns whether they
were still there."""

_LEAVE = """
local function leave(ids)
    local left = 0
    for _, id in ipairs(ids) do
        local entry = redis.call('HGET', KEYS[2], id)
        redis.call('ZREM', KEYS[1], id)
        if entry then
            local model, tenant = string.match(entry, '^([^\\n]*)\\n(.*)$')
            redis.call('HDEL', KEYS[2], id)
            redis.call('ZREM', 'unrolled:{index}:tenant:' .. tenant, id)
            if redis.call('HINCRBY', KEYS[3], model, -1) <= 0 then
                redis.call('HDEL', KEYS[3], model)
            end
            left = left + 1
        end
    end
    return left
end
"""

LEAVE = (
    _LEAVE
    + """
return leave(ARGV)
"""
)
"""KEYS: ends, sessions, models. ARGV: IDs of sessions that have ended. Returns how many of them
were in the indexes."""

DISCARD = (
    _LEAVE
    + """
local id, facts, epoch, used = unpack(ARGV)
local found = redis.call('HMGET', KEYS[4], 'facts', 'epoch', 'used')
if found[1] ~= facts or found[2] ~= epoch or found[3] ~= used then return 0 end
redis.call('DEL', KEYS[4])
leave({id})
return 1
"""
)
"""KEYS: ends, sessions, models, session. ARGV: ID; facts, epoch and used that the session was
inserted with. Returns whether it was still so, and has ended."""
