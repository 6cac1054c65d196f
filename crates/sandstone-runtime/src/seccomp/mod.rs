//! The system call filter of every sandbox.
//!
//! An allow list in the spirit of Docker's default for a container without extra capabilities.
//! What is missing from it fails with `EPERM`, except:
//!
//! - `clone3`, whose flags a filter cannot see, and calls newer than the list fail with `ENOSYS`,
//!   so that C libraries fall back to what they did before;
//! - a call of another architecture kills the process.
//!
//! New user name spaces stay forbidden in every form: in one of its own, a sandbox's root would
//! have all capabilities again, and with them most of the kernel's attack surface.
//!
//! The program is a binary search over ranges of call numbers. The kernel runs it once for every
//! call that exists when it is loaded, and the time for that is part of every start: a chain of
//! comparisons took 1.5 ms.

mod calls;

use std::collections::BTreeMap;

use libc::sock_filter;

use calls::{ALLOWED, ALLOWED_HERE};

/// Newest call that the list was written with: `listns` of Linux 6.18.
const NEWEST: u32 = 470;

/// The only architecture whose calls are accepted, `AUDIT_ARCH_*` of `<linux/audit.h>`.
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Name spaces in the flags of `clone`.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// Protocol families of sockets. No AF_VSOCK, which can reach a hypervisor, and none of the
/// families that ordinary programs do not need but kernel exploits do.
const SOCKET_FAMILIES: &[u32] = &[
    libc::AF_UNIX.cast_unsigned(),
    libc::AF_INET.cast_unsigned(),
    libc::AF_INET6.cast_unsigned(),
    libc::AF_NETLINK.cast_unsigned(),
];

/// Execution domains: Linux, Linux with another version number, Linux without address
/// randomisation (for debuggers), and the question which it is.
const PERSONALITIES: &[u32] = &[0, 0x8, 0x2_0000, 0x2_0008, 0x4_0000, 0xffff_ffff];

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    /// `EPERM`.
    Refuse,
    /// `ENOSYS`.
    Unknown,
    /// Refused if the first argument has any of these bits.
    WithoutBits(u32),
    /// Refused unless the first argument is one of these.
    OneOf(&'static [u32]),
}

// Offsets in `struct seccomp_data`; arguments are little-endian, eight bytes each.
const CALL_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const FIRST_ARGUMENT_OFFSET: u32 = 16;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const IF_ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

const fn refusal(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

/// One instruction; `yes` and `no` are how many instructions a jump skips.
const fn instruction(code: u32, yes: u8, no: u8, k: u32) -> sock_filter {
    sock_filter {
        // All codes of classic BPF are below 256.
        code: code as u16,
        jt: yes,
        jf: no,
        k,
    }
}

/// The program.
pub(crate) fn compile() -> Vec<sock_filter> {
    let mut program = vec![
        instruction(LOAD, 0, 0, ARCHITECTURE_OFFSET),
        instruction(IF_EQUAL, 1, 0, ARCHITECTURE),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD, 0, 0, CALL_OFFSET),
    ];
    program.extend(search(&ranges()));
    program
}

/// The verdict on each call number, as the starts of ranges: the first is 0, the last has no end.
fn ranges() -> Vec<(u32, Verdict)> {
    let mut verdicts: BTreeMap<u32, Verdict> = ALLOWED
        .iter()
        .chain(ALLOWED_HERE)
        .map(|call| (number(*call), Verdict::Allow))
        .collect();
    verdicts.extend([
        (
            number(libc::SYS_clone),
            Verdict::WithoutBits(NAMESPACES.cast_unsigned()),
        ),
        (number(libc::SYS_socket), Verdict::OneOf(SOCKET_FAMILIES)),
        (number(libc::SYS_personality), Verdict::OneOf(PERSONALITIES)),
        (number(libc::SYS_clone3), Verdict::Unknown),
    ]);
    let mut ranges = Vec::new();
    for call in 0..=NEWEST {
        let verdict = verdicts.get(&call).copied().unwrap_or(Verdict::Refuse);
        if ranges.last().is_none_or(|(_, last)| *last != verdict) {
            ranges.push((call, verdict));
        }
    }
    ranges.push((NEWEST + 1, Verdict::Unknown));
    ranges
}

fn number(call: i64) -> u32 {
    u32::try_from(call).expect("call numbers are small")
}

fn search(ranges: &[(u32, Verdict)]) -> Vec<sock_filter> {
    match ranges {
        [] => Vec::new(),
        [(_, verdict)] => judge(*verdict),
        _ => {
            let (low, high) = ranges.split_at(ranges.len() / 2);
            let low_part = search(low);
            // Only an unconditional jump can skip more than 255 instructions.
            let skip = u32::try_from(low_part.len()).expect("the program is short");
            let mut program = vec![
                instruction(IF_AT_LEAST, 0, 1, high[0].0),
                instruction(JUMP, 0, 0, skip),
            ];
            program.extend(low_part);
            program.extend(search(high));
            program
        }
    }
}

fn judge(verdict: Verdict) -> Vec<sock_filter> {
    let allow = instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    let refuse = instruction(RETURN, 0, 0, refusal(libc::EPERM));
    let load = instruction(LOAD, 0, 0, FIRST_ARGUMENT_OFFSET);
    match verdict {
        Verdict::Allow => vec![allow],
        Verdict::Refuse => vec![refuse],
        Verdict::Unknown => vec![instruction(RETURN, 0, 0, refusal(libc::ENOSYS))],
        Verdict::WithoutBits(bits) => {
            vec![load, instruction(IF_ANY_BIT, 0, 1, bits), refuse, allow]
        }
        Verdict::OneOf(values) => {
            let mut program = vec![load];
            for (left, value) in (1..=values.len()).rev().zip(values) {
                // Over the comparisons that are left, this one not counted, and the refusal.
                let skip = u8::try_from(left).expect("lists of values are short");
                program.push(instruction(IF_EQUAL, skip, 0, *value));
            }
            program.extend([refuse, allow]);
            program
        }
    }
}

/// The program as bytes, for [`decode`].
pub(crate) fn encode(program: &[sock_filter]) -> Vec<u8> {
    program
        .iter()
        .flat_map(|instruction| {
            let mut bytes = [0; 8];
            bytes[..2].copy_from_slice(&instruction.code.to_le_bytes());
            bytes[2] = instruction.jt;
            bytes[3] = instruction.jf;
            bytes[4..].copy_from_slice(&instruction.k.to_le_bytes());
            bytes
        })
        .collect()
}

/// The program that [`encode`] wrote.
pub(crate) fn decode(bytes: &[u8]) -> Vec<sock_filter> {
    let (instructions, _) = bytes.as_chunks::<8>();
    instructions
        .iter()
        .map(|[c0, c1, jt, jf, k0, k1, k2, k3]| sock_filter {
            code: u16::from_le_bytes([*c0, *c1]),
            jt: *jt,
            jf: *jf,
            k: u32::from_le_bytes([*k0, *k1, *k2, *k3]),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    fn verdict(program: &[sock_filter], architecture: u32, call: u32, argument: u32) -> u32 {
        let mut accumulator = 0;
        let mut at = 0;
        for _ in 0..program.len() {
            let step = &program[at];
            at += 1;
            let yes = match u32::from(step.code) {
                LOAD => {
                    accumulator = match step.k {
                        CALL_OFFSET => call,
                        ARCHITECTURE_OFFSET => architecture,
                        FIRST_ARGUMENT_OFFSET => argument,
                        other => panic!("load from {other}"),
                    };
                    continue;
                }
                JUMP => {
                    at += step.k as usize;
                    continue;
                }
                RETURN => return step.k,
                IF_EQUAL => accumulator == step.k,
                IF_AT_LEAST => accumulator >= step.k,
                IF_ANY_BIT => accumulator & step.k != 0,
                other => panic!("code {other}"),
            };
            at += usize::from(if yes { step.jt } else { step.jf });
        }
        panic!("no verdict");
    }

    fn here(call: i64, argument: i32) -> u32 {
        verdict(
            &compile(),
            ARCHITECTURE,
            number(call),
            argument.cast_unsigned(),
        )
    }

    #[test]
    fn each_number_has_its_verdict() {
        let program = compile();
        assert!(program.len() < 1000, "{} instructions", program.len());
        for call in (0..1024).chain([0x4000_0000, 0x4000_0001, u32::MAX]) {
            let special = [
                libc::SYS_clone,
                libc::SYS_clone3,
                libc::SYS_socket,
                libc::SYS_personality,
            ];
            if special.contains(&i64::from(call)) {
                continue;
            }
            let listed =
                ALLOWED.contains(&i64::from(call)) || ALLOWED_HERE.contains(&i64::from(call));
            let expected = match call {
                call if call > NEWEST => refusal(libc::ENOSYS),
                _ if listed => libc::SECCOMP_RET_ALLOW,
                _ => refusal(libc::EPERM),
            };
            assert_eq!(verdict(&program, ARCHITECTURE, call, 0), expected, "{call}");
            assert_eq!(
                verdict(&program, 0x4000_0003, call, 0),
                libc::SECCOMP_RET_KILL_PROCESS,
                "{call} of i386"
            );
        }
    }

    #[test]
    fn arguments_are_looked_at() {
        let refused = refusal(libc::EPERM);
        let allowed = libc::SECCOMP_RET_ALLOW;
        let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_THREAD | libc::SIGCHLD;
        assert_eq!(here(libc::SYS_clone, thread), allowed);
        for namespace in [
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWNET,
            libc::CLONE_NEWCGROUP,
        ] {
            assert_eq!(here(libc::SYS_clone, thread | namespace), refused);
        }
        for (family, expected) in [
            (libc::AF_UNIX, allowed),
            (libc::AF_INET, allowed),
            (libc::AF_INET6, allowed),
            (libc::AF_NETLINK, allowed),
            (libc::AF_PACKET, refused),
            (libc::AF_ALG, refused),
            (libc::AF_VSOCK, refused),
            (-1, refused),
        ] {
            assert_eq!(here(libc::SYS_socket, family), expected, "{family}");
        }
        assert_eq!(here(libc::SYS_personality, 0), allowed);
        assert_eq!(here(libc::SYS_personality, -1), allowed);
        // READ_IMPLIES_EXEC
        assert_eq!(here(libc::SYS_personality, 0x40_0000), refused);
        assert_eq!(here(libc::SYS_clone3, 0), refusal(libc::ENOSYS));
    }

    #[test]
    fn dangerous_calls_are_refused() {
        for call in [
            libc::SYS_add_key,
            libc::SYS_bpf,
            libc::SYS_delete_module,
            libc::SYS_finit_module,
            libc::SYS_fsopen,
            libc::SYS_init_module,
            libc::SYS_io_uring_setup,
            libc::SYS_kexec_load,
            libc::SYS_keyctl,
            libc::SYS_mount,
            libc::SYS_mount_setattr,
            libc::SYS_move_mount,
            libc::SYS_open_by_handle_at,
            libc::SYS_open_tree,
            libc::SYS_perf_event_open,
            libc::SYS_pivot_root,
            libc::SYS_quotactl,
            libc::SYS_reboot,
            libc::SYS_request_key,
            libc::SYS_setns,
            libc::SYS_swapon,
            libc::SYS_syslog,
            libc::SYS_umount2,
            libc::SYS_unshare,
            libc::SYS_userfaultfd,
        ] {
            assert_eq!(here(call, 0), refusal(libc::EPERM), "{call}");
        }
    }

    #[test]
    fn encoding_loses_nothing() {
        let program = compile();
        let same = |a: &sock_filter, b: &sock_filter| {
            (a.code, a.jt, a.jf, a.k) == (b.code, b.jt, b.jf, b.k)
        };
        let decoded = decode(&encode(&program));
        assert_eq!(decoded.len(), program.len());
        assert!(program.iter().zip(&decoded).all(|(a, b)| same(a, b)));
    }
}
