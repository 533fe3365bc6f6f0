/* A PKCS#11 module that is SoftHSM2, with what a test wants to go wrong. The
 * faults are files in the directory CREDENCE_TEST_FAULTS: "gone" unplugs the
 * token, "final" is its flag for a last try, "damage" spoils signatures,
 * "denied.ACT" forbids an act; a locked "ACT.LABEL" hangs it on a key, which the
 * pipe "ACT.LABEL.arrived" is told. Each login adds a byte to "logins". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define CK_PTR *
#define CK_DECLARE_FUNCTION(type, name) type name
#define CK_DECLARE_FUNCTION_POINTER(type, name) type(*name)
#define CK_CALLBACK_FUNCTION(type, name) type(*name)
#ifndef NULL_PTR
#define NULL_PTR 0
#endif
#include "pkcs11.h"

static CK_FUNCTION_LIST real, ours;
static CK_SLOT_ID last_slot;
static char labels[65536][64]; /* of the key that each session signs with */

static const char *path(char *to, const char *name) {
	snprintf(to, 512, "%s/%s", getenv("CREDENCE_TEST_FAULTS"), name);
	return to;
}

static int set(const char *name) {
	char p[512];
	return access(path(p, name), F_OK) == 0;
}

static void maybe_hang(const char *act, const char *label) {
	char name[128], p[512];
	int fd, pipe;
	snprintf(name, sizeof name, "%s.%s", act, label);
	if ((fd = open(path(p, name), O_RDONLY)) < 0)
		return;
	strcat(name, ".arrived");
	if ((pipe = open(path(p, name), O_WRONLY | O_NONBLOCK)) >= 0) {
		if (write(pipe, "x", 1) < 0)
			abort();
		close(pipe);
	}
	flock(fd, LOCK_SH);
	close(fd);
}

static int unplugged(void) {
	if (!set("gone"))
		return 0;
	real.C_CloseAllSessions(last_slot);
	return 1;
}

static void label_of(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o, char *to) {
	CK_ATTRIBUTE a = {CKA_LABEL, to, 63};
	memset(to, 0, 64);
	real.C_GetAttributeValue(s, o, &a, 1);
}

static CK_RV get_slot_list(CK_BBOOL present, CK_SLOT_ID_PTR list, CK_ULONG_PTR count) {
	if (unplugged()) {
		*count = 0;
		return CKR_OK;
	}
	return real.C_GetSlotList(present, list, count);
}

static CK_RV get_token_info(CK_SLOT_ID slot, CK_TOKEN_INFO_PTR info) {
	CK_RV rv = real.C_GetTokenInfo(slot, info);
	if (rv == CKR_OK && set("final"))
		info->flags |= CKF_USER_PIN_FINAL_TRY;
	return rv;
}

static CK_RV open_session(CK_SLOT_ID slot, CK_FLAGS flags, CK_VOID_PTR app, CK_NOTIFY notify, CK_SESSION_HANDLE_PTR s) {
	if (unplugged())
		return CKR_DEVICE_REMOVED;
	last_slot = slot;
	return real.C_OpenSession(slot, flags, app, notify, s);
}

static CK_RV login(CK_SESSION_HANDLE s, CK_USER_TYPE user, CK_UTF8CHAR_PTR pin, CK_ULONG size) {
	char p[512];
	int fd = open(path(p, "logins"), O_WRONLY | O_APPEND | O_CREAT, 0600);
	if (fd < 0 || write(fd, "x", 1) < 0)
		abort();
	close(fd);
	return real.C_Login(s, user, pin, size);
}

static CK_RV sign_init(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_OBJECT_HANDLE key) {
	if (unplugged())
		return CKR_DEVICE_REMOVED;
	if (set("denied.sign"))
		return CKR_KEY_FUNCTION_NOT_PERMITTED;
	label_of(s, key, labels[s % 65536]);
	return real.C_SignInit(s, m, key);
}

static CK_RV sign(CK_SESSION_HANDLE s, CK_BYTE_PTR data, CK_ULONG size, CK_BYTE_PTR sig, CK_ULONG_PTR sig_size) {
	CK_RV rv;
	if (sig)
		maybe_hang("sign", labels[s % 65536]);
	rv = real.C_Sign(s, data, size, sig, sig_size);
	if (rv == CKR_OK && sig && set("damage"))
		sig[*sig_size / 2] ^= 1;
	return rv;
}

static CK_RV generate(CK_SESSION_HANDLE s, CK_MECHANISM_PTR m, CK_ATTRIBUTE_PTR pub, CK_ULONG n, CK_ATTRIBUTE_PTR priv, CK_ULONG k, CK_OBJECT_HANDLE_PTR a, CK_OBJECT_HANDLE_PTR b) {
	if (unplugged())
		return CKR_DEVICE_REMOVED;
	if (set("denied.create"))
		return CKR_FUNCTION_REJECTED;
	maybe_hang("create", "");
	return real.C_GenerateKeyPair(s, m, pub, n, priv, k, a, b);
}

static CK_RV find_init(CK_SESSION_HANDLE s, CK_ATTRIBUTE_PTR t, CK_ULONG n) {
	char label[64] = "";
	CK_ULONG i;
	if (unplugged())
		return CKR_DEVICE_REMOVED;
	if (set("denied.open"))
		return CKR_FUNCTION_REJECTED;
	for (i = 0; i < n; i++)
		if (t[i].type == CKA_LABEL && t[i].ulValueLen < 64)
			memcpy(label, t[i].pValue, t[i].ulValueLen);
	maybe_hang("open", label);
	return real.C_FindObjectsInit(s, t, n);
}

static CK_RV destroy(CK_SESSION_HANDLE s, CK_OBJECT_HANDLE o) {
	char label[64];
	label_of(s, o, label);
	if (set("denied.remove"))
		return CKR_ACTION_PROHIBITED;
	maybe_hang("remove", label);
	return real.C_DestroyObject(s, o);
}

CK_RV C_GetFunctionList(CK_FUNCTION_LIST_PTR_PTR list) {
	void *lib;
	CK_C_GetFunctionList get;
	CK_FUNCTION_LIST_PTR from;
	*list = &ours;
	if (ours.C_Initialize)
		return CKR_OK;
	lib = dlopen(getenv("CREDENCE_TEST_MODULE"), RTLD_NOW | RTLD_LOCAL);
	if (!lib || !(get = (CK_C_GetFunctionList)dlsym(lib, "C_GetFunctionList")) || get(&from) != CKR_OK)
		return CKR_GENERAL_ERROR;
	real = ours = *from;
	ours.C_GetSlotList = get_slot_list;
	ours.C_GetTokenInfo = get_token_info;
	ours.C_OpenSession = open_session;
	ours.C_Login = login;
	ours.C_SignInit = sign_init;
	ours.C_Sign = sign;
	ours.C_GenerateKeyPair = generate;
	ours.C_FindObjectsInit = find_init;
	ours.C_DestroyObject = destroy;
	return CKR_OK;
}
